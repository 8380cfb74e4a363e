// Residual sum, slot mean and LayerNorm of all streams of a call: forward and backward.
#pragma once

#include <cstdint>
#include <vector>

#include "element.hpp"
#include "instruction_sets.hpp"
#include "rows.hpp"

namespace mbt_fast::cpu {

struct NormForward {
  TokenRows stream, branch;  // the branch may be none
  TokenRows sums;            // written; none where that is the stream itself
  TokenRows out;             // written
  int64_t rows;              // S
  const bool* keep;          // [B], the examples that the branch is added for; or none, for all
  const int32_t* lengths;    // [B], 0 where the stream is absent; or none
  const float *weight, *bias;  // [C]
  float* stats;                // [2, B, S]: mean, reciprocal standard deviation
};

struct NormBackward {
  TokenRows sums, dsums, dout;  // dsums may be none
  TokenRows dx;                 // written: the gradient of the stream, and of the branch too
  TokenRows dbranch;            // written: that of the branch, if there is a `keep`
  int64_t rows;
  const bool* keep;
  const int32_t* lengths;
  const float *weight, *stats;
  float* dparameters;  // [2, C]: weight, bias
};

// What all streams have in common.
struct NormCall {
  const InstructionSet& isa;
  Dtype dtype;
  int64_t batch, slots, channels;  // B, P, C
  float eps;
  int threads;

  const LayerKernels& kernels() const { return *isa.layers[dtype]; }
};

void add_layer_norm_fwd(const NormCall& call, const std::vector<NormForward>& streams);
void add_layer_norm_bwd(const NormCall& call, const std::vector<NormBackward>& streams);

}  // namespace mbt_fast::cpu
