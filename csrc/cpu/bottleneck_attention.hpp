// Bottleneck attention of all streams of a call: forward and backward.
#pragma once

#include <cstdint>
#include <vector>

#include "element.hpp"
#include "instruction_sets.hpp"

namespace mbt_fast::cpu {

// One stream of a call. Strides are in elements; arrays without strides are contiguous.
struct Stream {
  const void* qkv;  // [B, S, 3, H, D]
  int64_t stride_batch, stride_row, stride_which, stride_head;
  int64_t rows;            // S
  const int32_t* lengths;  // [B], or none
};

struct StreamForward : Stream {
  void* out;     // [B, S, H, D]
  float* lse;    // [B, H, S]
  float* stats;  // [2, B, H, S]: shift and log2 of the sum
};

struct StreamBackward : Stream {
  const void* out;
  float* stats;
  const void* dout;  // [B, S, H, D]
  int64_t dout_stride_batch, dout_stride_row, dout_stride_head;
  const float* dlse;  // [B, H, S], or none
  void* dqkv;         // [B, S, 3, H, D]
};

// What all streams have in common.
struct Call {
  const InstructionSet& isa;
  Dtype dtype;
  int64_t batch, heads, slots, dim;  // B, H, P, D
  float scale;
  int threads;

  int64_t bytes(int64_t elements) const { return elements * size_of(dtype); }
  const HeadKernels& kernels() const { return *isa.heads[dtype]; }
};

// kept: [M, B, P, H, D], the slots before the shared update; none where there is no such update.
void bottleneck_attention_fwd(const Call& call, const std::vector<StreamForward>& streams,
                              void* kept);
void bottleneck_attention_bwd(const Call& call, const std::vector<StreamBackward>& streams,
                              const void* kept);

}  // namespace mbt_fast::cpu
