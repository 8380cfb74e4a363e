// make_tensor_map for the GPU. The driver encodes a map; it is asked for at run time, through the
// static runtime, so that neither the build nor the import needs libcuda.
#include <cstring>

#include "launch.cuh"

#ifdef __CUDACC__

#include <cuda.h>

namespace mbt_fast::cuda {

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                              12000, cudaEnableDefault, &result);
#else
  const cudaError_t status =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
  check(status, "cuTensorMapEncodeTiled");
  if (result != cudaDriverEntryPointSuccess || !found)
    throw std::runtime_error(
        "the CUDA driver has no cuTensorMapEncodeTiled: it is older than 12.0");
  return reinterpret_cast<Encode>(found);
}

CUtensorMapDataType type_of(MapElement element) {
  if (element == MapElement::kBfloat16) return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  if (element == MapElement::kFloat16) return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}

}  // namespace

TensorMap make_tensor_map(const std::string& name, const TensorMapArguments& map) {
  check_tensor_map(name, map);
  static const Encode encode = encoder();
  const uint32_t steps[kMapRank] = {1, 1, 1, 1, 1};
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap));
  alignas(64) CUtensorMap made;
  const CUresult status =
      encode(&made, type_of(map.element), kMapRank, map.base, map.sizes, map.strides, map.box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             map.swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled of " + name + " fails with code " +
                             std::to_string(status));
  TensorMap result;
  std::memcpy(&result, &made, sizeof result);
  return result;
}

}  // namespace mbt_fast::cuda

#endif
