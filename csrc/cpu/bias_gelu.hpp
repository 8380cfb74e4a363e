// GELU of x + bias, any number of elements: forward and backward.
#pragma once

#include <cstdint>

#include "element.hpp"
#include "instruction_sets.hpp"

namespace mbt_fast::cpu {

// Tensors are contiguous, [.., C]; the bias is float32 [C], or none.
struct GeluCall {
  const InstructionSet& isa;
  Dtype dtype;
  Approximate approximate;
  int64_t elements, channels;  // channels is at least 1
  int threads;
};

void bias_gelu_fwd(const GeluCall& call, const void* x, const float* bias, void* out);

// dbias: float32 [C], none where there is no bias.
void bias_gelu_bwd(const GeluCall& call, const void* x, const float* bias, const void* dout,
                   void* dx, float* dbias);

}  // namespace mbt_fast::cpu
