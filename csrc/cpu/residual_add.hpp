// Residual sum of all streams of a call, and the slots that they share: forward and backward.
#pragma once

#include <cstdint>
#include <vector>

#include "element.hpp"
#include "instruction_sets.hpp"
#include "rows.hpp"

namespace mbt_fast::cpu {

struct ResidualForward {
  TokenRows stream, branch;
  TokenRows sums;  // written
  int64_t rows;    // S
  const bool* keep;        // [B], the examples that the branch is added for; or none, for all
  const int32_t* lengths;  // [B], 0 where the stream is absent; or none
};

struct ResidualBackward {
  TokenRows dsums;
  TokenRows dx;       // written: the gradient of the stream; none without slots, where it is dsums
  TokenRows dbranch;  // written: that of the branch; none without `keep`, where it is the stream's
  int64_t rows;
  const bool* keep;
  const int32_t* lengths;
};

// What all streams have in common. Without slots, P = 0, none are shared.
struct ResidualCall {
  const InstructionSet& isa;
  Dtype dtype;
  int64_t batch, slots, channels;  // B, P, C
  int threads;

  int64_t row_bytes() const { return channels * size_of(dtype); }
};

void residual_add_fwd(const ResidualCall& call, const std::vector<ResidualForward>& streams);
void residual_add_bwd(const ResidualCall& call, const std::vector<ResidualBackward>& streams);

}  // namespace mbt_fast::cpu
