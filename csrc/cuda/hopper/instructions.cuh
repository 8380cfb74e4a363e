// Hopper's instructions, one thin function each: all that the kernels here know of the machine.
//
// nvcc takes them from ptx.cuh and wgmma.cuh, as inline PTX. Any other compiler takes them from
// emulated/, where the same kernels run on the CPU, slowly and strictly, for tests.
#pragma once

#include <cstdint>

#include "descriptor.cuh"
#include "tensor_map.hpp"

namespace mbt_fast::cuda {

using SharedAddress = uint32_t;  // of a byte, in the window of shared memory

struct alignas(16) Words {
  uint32_t x, y, z, w;
};

struct alignas(16) Floats {
  float x, y, z, w;
};
struct alignas(8) Pair {
  float x, y;
};

// The elements of matrices. Only their bits are stored.
struct Bfloat16 {};
struct Float16 {};

constexpr int kWarp = 32;
constexpr int kWarpGroup = 128;
constexpr SharedAddress kSharedMemory = 227 * 1024;  // bytes that a block may have

}  // namespace mbt_fast::cuda

#ifdef __CUDACC__
#define MBT_DEVICE __device__ __forceinline__
#include "ptx.cuh"
#include "wgmma.cuh"
#else
#define MBT_DEVICE inline
#include "../emulated/hopper.hpp"
#endif
