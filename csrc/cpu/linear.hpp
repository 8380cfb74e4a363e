// Linears of several streams in one call: x W^T + b, and the gradients of x, W and b.
#pragma once

#include <cstdint>
#include <vector>

#include "element.hpp"
#include "instruction_sets.hpp"

namespace mbt_fast::cpu {

// Tensors are contiguous; biases and their gradients are float32. No size is 0.
struct LinearCall {
  const InstructionSet& isa;
  Dtype dtype;
  int threads;

  const LinearKernels& kernels() const { return *isa.linears[dtype]; }
};

struct LinearShape {
  int64_t rows, inputs, outputs;
};

struct LinearForward {
  LinearShape shape;
  const void *x, *weight;  // [rows][inputs], [outputs][inputs]
  const float* bias;       // [outputs], or none
  void* out;               // [rows][outputs]
};

// A gradient that is none is not computed, and needs no operand.
struct LinearBackward {
  LinearShape shape;
  const void *dout, *x, *weight;
  void *dx, *dweight;
  float* dbias;
};

void linear_fwd(const LinearCall& call, const std::vector<LinearForward>& streams);
void linear_bwd(const LinearCall& call, const std::vector<LinearBackward>& streams);

}  // namespace mbt_fast::cpu
