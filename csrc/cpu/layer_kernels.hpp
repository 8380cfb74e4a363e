// The layer's kernels of this translation unit's instruction set, as one value per dtype.
#pragma once

#include "gelu.hpp"
#include "layer_norm.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

template <class T>
constexpr LayerKernels layer_kernels() {
  return {{&gelu<ErfNormal<T>, T>, &gelu<TanhNormal<T>, T>},
          {&gelu_gradient<ErfNormal<T>, T>, &gelu_gradient<TanhNormal<T>, T>},
          &add_elements<T>,
          &normalize<T>,
          &normalize_gradient<T>};
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
