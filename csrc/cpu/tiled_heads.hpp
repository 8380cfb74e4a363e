// The kernels of amx.cpp and amx_emulated.cpp: those of head_kernels.hpp, between setting up the
// thread's tiles and releasing them; the forward pipelined.
#pragma once

#include "head_fwd_pipelined.hpp"
#include "head_kernels.hpp"
#include "kernels.hpp"
#include "split.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

template <class Product, class T>
void tiled_forward(const HeadForward& h, void* scratch) {
  const TilesOfThisThread tiles;
  pipelined_forward<Product, T>(h, scratch);
}
template <class Product, class T>
void tiled_backward(const HeadBackward& h, void* scratch) {
  const TilesOfThisThread tiles;
  backward<Product, T>(h, scratch);
}

template <class T>
inline bool has_infinity(const Head& h, const Rows& rows) {
  const RowsOf<T> x{rows, h.own, h.count};
  const Words magnitude = splat_word(0x7fffffff), infinity = splat_word(0x7f800000);
  for (int64_t r = 0; r < h.count; ++r) {
    __mmask16 found = 0;
    for (int64_t d = 0; d < h.dim; d += kLanes) {
      const Words bits = as_words(load_elements(x[r] + d, h.dim - d));
      found |= _mm512_cmpeq_epi32_mask(_mm512_and_si512(bits, magnitude), infinity);
    }
    if (found) return true;
  }
  return false;
}

// Split products, but float32 ones where an operand is infinite. All rows of the head decide, so
// that a head split between threads takes one way.
template <class Product, class T, Dtype kDtype>
void split_forward(const HeadForward& h, void* scratch) {
  if (has_infinity<T>(h, h.q) || has_infinity<T>(h, h.k) || has_infinity<T>(h, h.v)) {
    return kAvx512[kDtype].forward(h, scratch);
  }
  tiled_forward<Product, T>(h, scratch);
}
template <class Product, class T, Dtype kDtype>
void split_backward(const HeadBackward& h, void* scratch) {
  if (has_infinity<T>(h, h.q) || has_infinity<T>(h, h.k) || has_infinity<T>(h, h.v) ||
      has_infinity<T>(h, h.dout)) {
    return kAvx512[kDtype].backward(h, scratch);
  }
  tiled_backward<Product, T>(h, scratch);
}
template <class Product, class T, Dtype kDtype>
int64_t split_forward_scratch(int64_t count, int64_t dim) {
  return larger(pipelined_forward_scratch<Product, T>(count, dim),
                kAvx512[kDtype].forward_scratch(count, dim));
}
template <class Product, class T, Dtype kDtype>
int64_t split_backward_scratch(int64_t count, int64_t dim) {
  return larger(backward_scratch<Product, T>(count, dim),
                kAvx512[kDtype].backward_scratch(count, dim));
}

constexpr HeadKernels pairs_kernels() {
  HeadKernels kernels = head_kernels<Pairs, Bfloat16>();
  kernels.forward = &tiled_forward<Pairs, Bfloat16>;
  kernels.forward_scratch = &pipelined_forward_scratch<Pairs, Bfloat16>;
  kernels.backward = &tiled_backward<Pairs, Bfloat16>;
  return kernels;
}

template <class Product, class T, Dtype kDtype>
constexpr HeadKernels split_kernels() {
  HeadKernels kernels = head_kernels<Product, T>();
  kernels.forward = &split_forward<Product, T, kDtype>;
  kernels.backward = &split_backward<Product, T, kDtype>;
  kernels.forward_scratch = &split_forward_scratch<Product, T, kDtype>;
  kernels.backward_scratch = &split_backward_scratch<Product, T, kDtype>;
  return kernels;
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
