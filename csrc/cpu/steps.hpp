// Loops over the elements of a row.
#pragma once

#include "common.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

// step(i, n) for every Step elements from i on, of which n exist: all of them but in the last step.
template <int64_t Step, class F>
MBT_FAST_INLINE void for_steps(int64_t count, const F& step) {
  int64_t i = 0;
  for (; i + Step <= count; i += Step) step(i, Step);
  if (i < count) step(i, count - i);
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
