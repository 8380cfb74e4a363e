// Loops over the elements of a row, and what adds rows up: residual sums, means of shared slots.
#pragma once

#include "../common.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

// step(i, n) for every Step elements from i on, of which n exist: all of them but in the last step.
template <int64_t Step, class F>
MBT_FAST_INLINE void for_each_vector(int64_t count, const F& step) {
  int64_t i = 0;
  for (; i + Step <= count; i += Step) step(i, Step);
  if (i < count) step(i, count - i);
}

template <class T>
void add_elements(const void* a, const void* b, int64_t count, void* sum) {
  const T *x = static_cast<const T*>(a), *y = static_cast<const T*>(b);
  T* to = static_cast<T*>(sum);
  for_each_vector<kLanes>(count, [=](int64_t c, int64_t n) MBT_FAST_INLINE_LAMBDA {
    store_elements(to + c, add(load_elements(x + c, n), load_elements(y + c, n)), n);
  });
}

template <class T>
void divided_sum(const void* const* rows, int64_t count, int64_t divisor, int64_t dim, void* to) {
  const Floats by = splat(static_cast<float>(divisor));
  for (int64_t d = 0; d < dim; d += kLanes) {
    Floats sum = zeros();
    for (int64_t i = 0; i < count; ++i) {
      sum = add(sum, load_elements(static_cast<const T*>(rows[i]) + d, dim - d));
    }
    store_elements(static_cast<T*>(to) + d, div(sum, by), dim - d);
  }
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
