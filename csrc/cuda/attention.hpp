// Bottleneck attention of all streams of a call on a GPU. Pointers are to its memory; nothing here
// waits for it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace mbt_fast::cuda {

constexpr int kMaxStreams = 8;  // of a call: their tensor maps are arguments of one kernel

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

// Raises std::invalid_argument for what the kernels cannot run, before anything is launched, and
// std::runtime_error for what CUDA says.
void attention_forward(const Call& call, const std::vector<StreamForward>& streams);

// How many floats of memory a stream of `rows` rows needs.
int64_t backward_workspace(const Call& call, int64_t rows, bool is_deterministic);

// Raises as the forward does. `dslots` is room for [B, P, H, D] where there is a shared update, or
// none. Deterministic results are the same at every repetition, bit by bit.
void attention_backward(const Call& call, const std::vector<StreamBackward>& streams, void* dslots,
                        bool is_deterministic);

// Bytes of shared memory that a launch asks for, by the kernel's name and its head dimension.
std::map<std::string, uint32_t> shared_memory_of_kernels();

}  // namespace mbt_fast::cuda
