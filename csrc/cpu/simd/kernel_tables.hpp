// The kernels of this translation unit's instruction set, as one value per dtype.
#pragma once

#include "../add_layer_norm_kernel.hpp"
#include "../bias_gelu_kernel.hpp"
#include "../bottleneck_attention_bwd.hpp"
#include "../bottleneck_attention_fwd.hpp"
#include "elementwise.hpp"
#include "kernels.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

template <class Product, class T>
constexpr HeadKernels head_kernels() {
  return {&bottleneck_attention_fwd<Product, T>,
          &bottleneck_attention_bwd<Product, T>,
          &bottleneck_attention_fwd_scratch<Product, T>,
          &bottleneck_attention_bwd_scratch<Product, T>,
          kQueries,
          &divided_sum<T>};
}

template <class T>
constexpr LayerKernels layer_kernels() {
  return {{&bias_gelu_fwd<ErfNormal<T>, T>, &bias_gelu_fwd<TanhNormal<T>, T>},
          {&bias_gelu_bwd<ErfNormal<T>, T>, &bias_gelu_bwd<TanhNormal<T>, T>},
          &add_elements<T>,
          &layer_norm_fwd<T>,
          &layer_norm_bwd<T>};
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
