// Which kernels run on which instruction set.
#pragma once

#include <vector>

#include "element.hpp"
#include "features.hpp"
#include "simd/kernels.hpp"

namespace mbt_fast::cpu {

struct InstructionSet {
  const char* name;
  bool Features::*needs;
  const HeadKernels* heads[kDtypes];  // float32, bfloat16, float16
  const LayerKernels* layers[kDtypes];
  const LinearKernels* linears[kDtypes];
};

// Best first; empty on other architectures than x86-64.
const std::vector<InstructionSet>& instruction_sets();

}  // namespace mbt_fast::cpu
