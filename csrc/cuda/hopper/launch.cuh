// A kernel's launch: on the GPU, or emulated.
#pragma once

#include <stdexcept>
#include <string>

#include "instructions.cuh"

#ifdef __CUDACC__

#include <cuda_runtime_api.h>

// One block per multiprocessor: it may have all registers.
#define MBT_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#define MBT_PARAMETERS const __grid_constant__
// Other architectures, built by option, have no body for these kernels; check_device refuses them.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MBT_HAS_HOPPER 0
#else
#define MBT_HAS_HOPPER 1
#endif

namespace mbt_fast::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}
inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// Also makes the device's context current: a thread that has launched nothing yet, such as autograd's,
// has none, and without it no tensor map can be encoded.
inline void check_device() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaSetDevice(device), "cudaSetDevice");
  const int major = device_attribute(cudaDevAttrComputeCapabilityMajor);
  if (major != 9)
    throw std::invalid_argument("the device must have compute capability 9.x, got " +
                                std::to_string(major) + ".x");
}

template <class Parameters>
void launch(void (*kernel)(Parameters), int grid, int threads, uint32_t shared_bytes, void* queue,
            const Parameters& parameters) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes)),
        "cudaFuncSetAttribute");
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(queue)>>>(parameters);
  check(cudaGetLastError(), "launch");
}

}  // namespace mbt_fast::cuda

#else

#define MBT_KERNEL(threads) void
#define MBT_PARAMETERS const
#define MBT_HAS_HOPPER 1

namespace mbt_fast::cuda {

inline int multiprocessors() { return emulated::settings.multiprocessors; }
inline void check_device() {}

template <class Parameters>
void launch(void (*kernel)(Parameters), int grid, int threads, uint32_t shared_bytes, void*,
            const Parameters& parameters) {
  emulated::launch(grid, threads, shared_bytes, [&] { kernel(parameters); });
}

}  // namespace mbt_fast::cuda

#endif
