// Bottleneck attention of all streams of a call on a GPU. Pointers are to its memory; nothing here
// waits for it.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace mbt_fast::cuda {

constexpr int kMaxStreams = 8;  // of a call: their tensor maps are arguments of one kernel
constexpr int kBackwardTile = 128;  // rows of an item of the backward

// One stream of a call. Strides are in elements, the last one is 1; arrays without strides are
// contiguous.
struct Stream {
  void* qkv;  // [B, S, 3, H, D]
  int64_t stride_batch, stride_row, stride_which, stride_head;
  int64_t rows;            // S
  const int32_t* lengths;  // [B], or none
};

struct StreamForward : Stream {
  void* out;     // [B, S, H, D]
  float* lse;    // [B, H, S]
  float* stats;  // [2, B, H, S]: the shift of the softmax in units of log2, and log2 of its sum
  void* kept;    // [B, P, H, D]: slots before the shared update; none where there is no such update
};

struct StreamBackward : Stream {
  const void *out, *kept;  // of the forward
  const float* stats;
  void* dout;  // [B, S, H, D]
  int64_t dout_stride_batch, dout_stride_row, dout_stride_head;
  const float* dlse;  // [B, H, S], or none
  float* workspace;   // backward_workspace() floats
  void* dqkv;         // [B, S, 3, H, D], contiguous
};

// What all streams have in common.
struct Call {
  bool is_half;                      // float16, or else bfloat16
  int64_t batch, heads, slots, dim;  // B, H, P, D
  float scale;
  void* queue;  // the CUDA stream
};

struct Bfloat16;  // the elements
struct Float16;
using SharedMemory = std::map<std::string, uint32_t>;  // bytes that a launch asks for, by kernel

// What is compiled for one element and one head dimension, in bottleneck_attention_fwd.cu and
// bottleneck_attention_bwd.cu.
template <class Element, int kDim>
struct Instance {
  static void fwd(const Call& call, const std::vector<StreamForward>& streams);
  static void bwd(const Call& call, const std::vector<StreamBackward>& streams, void* dslots,
                  bool is_deterministic);
  static SharedMemory fwd_shared_memory();
  static SharedMemory bwd_shared_memory();
};
extern template struct Instance<Bfloat16, 64>;  // each has translation units of its own
extern template struct Instance<Bfloat16, 128>;
extern template struct Instance<Float16, 64>;
extern template struct Instance<Float16, 128>;

// The one of four functions that serves the call's element and head dimension.
template <class Function>
Function* choose(const Call& call, Function* bfloat16_64, Function* bfloat16_128,
                 Function* float16_64, Function* float16_128) {
  if (call.dim != 64 && call.dim != 128)
    throw std::invalid_argument("the head dimension must be 64 or 128, got " +
                                std::to_string(call.dim));
  if (call.dim == 64) return call.is_half ? float16_64 : bfloat16_64;
  return call.is_half ? float16_128 : bfloat16_128;
}

// Raises std::invalid_argument for what the kernels cannot run, before anything is launched, and
// std::runtime_error for what CUDA says.
inline void bottleneck_attention_fwd(const Call& call, const std::vector<StreamForward>& streams) {
  choose(call, &Instance<Bfloat16, 64>::fwd, &Instance<Bfloat16, 128>::fwd,
         &Instance<Float16, 64>::fwd, &Instance<Float16, 128>::fwd)(call, streams);
}

// Raises as the forward does. `dslots` is room for [B, P, H, D] where there is a shared update, or
// none. Deterministic results are the same at every repetition, bit by bit.
inline void bottleneck_attention_bwd(const Call& call, const std::vector<StreamBackward>& streams,
                                     void* dslots, bool is_deterministic) {
  const auto bwd = choose(call, &Instance<Bfloat16, 64>::bwd, &Instance<Bfloat16, 128>::bwd,
                          &Instance<Float16, 64>::bwd, &Instance<Float16, 128>::bwd);
  bwd(call, streams, dslots, is_deterministic);
}

// How many floats of memory the backward of a stream of `rows` rows needs.
inline int64_t backward_workspace(const Call& call, int64_t rows, bool is_deterministic) {
  const int64_t tiles = (rows + kBackwardTile - 1) / kBackwardTile;
  const int64_t of_row = 3 + (is_deterministic ? 0 : call.dim);
  return call.batch * call.heads * tiles * kBackwardTile * of_row;
}

// Bytes of shared memory that a launch asks for, by the kernel's name and its head dimension.
inline SharedMemory shared_memory_of_kernels() {
  SharedMemory found;
  for (const SharedMemory& some :
       {Instance<Bfloat16, 64>::fwd_shared_memory(), Instance<Bfloat16, 128>::fwd_shared_memory(),
        Instance<Bfloat16, 64>::bwd_shared_memory(), Instance<Bfloat16, 128>::bwd_shared_memory()})
    found.insert(some.begin(), some.end());
  return found;
}

}  // namespace mbt_fast::cuda
