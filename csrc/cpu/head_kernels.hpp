// The kernels of this translation unit's instruction set, as one value per dtype.
#pragma once

#include "head_bwd.hpp"
#include "head_fwd.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

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

template <class Product, class T>
constexpr HeadKernels head_kernels() {
  return {&forward<Product, T>,          &backward<Product, T>, &forward_scratch<Product, T>,
          &backward_scratch<Product, T>, kQueries,              &divided_sum<T>};
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
