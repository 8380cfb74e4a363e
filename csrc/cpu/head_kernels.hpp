// The kernels of this translation unit's instruction set, as one value per dtype.
#pragma once

#include "head_bwd.hpp"
#include "head_fwd.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

template <class T>
void mean_of_rows(const void* const* rows, int64_t count, int64_t dim, void* to) {
  const Floats divisor = splat(static_cast<float>(count));
  for (int64_t d = 0; d < dim; d += kLanes) {
    Floats sum = zeros();
    for (int64_t i = 0; i < count; ++i) {
      sum = add(sum, load_elements(static_cast<const T*>(rows[i]) + d, dim - d));
    }
    store_elements(static_cast<T*>(to) + d, div(sum, divisor), dim - d);
  }
}

template <class Product, class T>
constexpr HeadKernels head_kernels() {
  return {&forward<Product, T>,          &backward<Product, T>, &forward_scratch<Product, T>,
          &backward_scratch<Product, T>, kQueries,              &mean_of_rows<T>};
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
