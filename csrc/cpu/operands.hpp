// The operands of products, in the layouts of products.hpp.
#pragma once

#include <cstdint>

#include "common.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

struct Left {
  const uint32_t* words;
  int64_t stride;  // words from row to row
};
struct Right {
  const uint32_t* words;
  int64_t stride;  // words from step to step
};
struct Result {
  float* values;
  int64_t stride;
};

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
