// A CUDA runtime that hands launches and tensor maps to two callbacks. The kernels' host code, as nvcc
// compiles it, is linked with this in place of NVIDIA's library.
//
// It refuses what a real one refuses, as far as this host code could get it wrong: a launch of a
// kernel that is not registered or wants more shared memory than it was allowed, and a tensor map
// where this thread has made no device current.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <map>
#include <string>

namespace {

using Launch = int (*)(const char* kernel, const unsigned* grid, const unsigned* block,
                       size_t shared_bytes, cudaStream_t stream, void** parameters);
using Encode = int (*)(void* map, int type, unsigned rank, void* base, const cuuint64_t* sizes,
                       const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps,
                       int interleave, int swizzle, int promotion, int fill);

struct Kernel {
  std::string name;
  int most_shared_bytes = 48 * 1024;
};
struct Configuration {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};

constexpr int kMostSharedBytes = 227 * 1024;  // of a block, compute capability 9.0

std::map<const void*, Kernel>& kernels() {
  static std::map<const void*, Kernel> all;
  return all;
}
Launch launch_callback = nullptr;
Encode encode_callback = nullptr;
int multiprocessors = 2;
thread_local bool has_context = false;
thread_local Configuration configuration;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

CUresult encode(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base,
                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                const cuuint32_t* steps, CUtensorMapInterleave interleave,
                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                CUtensorMapFloatOOBfill fill) {
  if (!has_context) return CUDA_ERROR_INVALID_CONTEXT;
  return encode_callback(map, type, rank, base, sizes, strides, box, steps, interleave, swizzle,
                         promotion, fill)
             ? CUDA_ERROR_INVALID_VALUE
             : CUDA_SUCCESS;
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, void** parameters,
                   size_t shared_bytes, cudaStream_t stream) {
  const auto found = kernels().find(function);
  if (found == kernels().end()) return note(cudaErrorInvalidDeviceFunction);
  if (shared_bytes > static_cast<size_t>(found->second.most_shared_bytes))
    return note(cudaErrorInvalidValue);
  has_context = true;
  const unsigned grid_sides[] = {grid.x, grid.y, grid.z};
  const unsigned block_sides[] = {block.x, block.y, block.z};
  const int failed = launch_callback(found->second.name.c_str(), grid_sides, block_sides,
                                     shared_bytes, stream, parameters);
  return note(failed ? cudaErrorLaunchFailure : cudaSuccess);
}

}  // namespace

// For the tests.
extern "C" __attribute__((visibility("default"))) void set_callbacks(Launch launch, Encode encode) {
  launch_callback = launch;
  encode_callback = encode;
}
extern "C" __attribute__((visibility("default"))) void set_multiprocessors(int count) {
  multiprocessors = count;
}

// The runtime's interface, as far as it is used. It is hidden: a real library may be loaded as well.
extern "C" {

void** __cudaRegisterFatBinary(void* binary) { return static_cast<void**>(binary); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host_function, char* device_name, const char*,
                            int, uint3*, uint3*, dim3*, dim3*, int*) {
  kernels()[host_function] = {device_name};
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes,
                                     cudaStream_t stream) {
  configuration = {grid, block, shared_bytes, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes,
                                       void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared_bytes = configuration.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = configuration.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** parameters,
                               size_t shared_bytes, cudaStream_t stream) {
  return launch(kernel, grid, block, parameters, shared_bytes, stream);
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** parameters,
                             size_t shared_bytes, cudaStream_t stream) {
  return launch(function, grid, block, parameters, shared_bytes, stream);
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value > kMostSharedBytes)
    return note(cudaErrorInvalidValue);
  kernels()[function].most_shared_bytes = value;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device != 0) return note(cudaErrorInvalidDevice);
  has_context = true;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute == cudaDevAttrMultiProcessorCount)
    *value = multiprocessors;
  else if (attribute == cudaDevAttrComputeCapabilityMajor)
    *value = 9;
  else
    return note(cudaErrorInvalidValue);
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  return error == cudaErrorLaunchFailure ? "the executor stopped" : "refused by the tests' runtime";
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  const bool is_known = std::string(symbol) == "cuTensorMapEncodeTiled";
  *function = is_known ? reinterpret_cast<void*>(encode) : nullptr;
  *result = is_known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

}  // extern "C"
