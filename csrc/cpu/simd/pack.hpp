// From rows in memory to the four layouts of products.hpp. Rows beyond the last become zeros, so
// that a block is always whole; words beyond D too.
#pragma once

#include "../common.hpp"
#include "kernels.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

// The valid rows of one stream and head, typed.
template <class T>
struct RowsOf {
  Rows rows;
  int64_t own, count;

  MBT_FAST_INLINE const T* operator[](int64_t number) const {  // null beyond the last
    if (number >= count) return nullptr;
    if (number < own) return static_cast<const T*>(rows.own) + number * rows.stride;
    return static_cast<const T*>(rows.slots) + (number - own) * rows.slot_stride;
  }
};

// Words that a product sums over for so many elements, in whole steps.
template <class Product>
constexpr int64_t words(int64_t elements) {
  return Product::kParts * round_up(ceil_div(elements, Product::kDepth), kStepsAtOnce);
}
template <class T>
MBT_FAST_INLINE RowsOf<T> writable(const OutRows& out, int64_t own, int64_t count) {
  return {{out.own, out.slots, out.stride, out.slot_stride}, own, count};
}

// Words of a packed row, in whole vectors.
template <class Product>
constexpr int64_t row_words(int64_t elements) {
  return round_up(words<Product>(elements), kLanes);
}

// One vector of words, of a product of one part; split.hpp has the others.
MBT_FAST_INLINE void store_parts(uint32_t* to, int64_t /*apart*/, Words x) { store_words(to, x); }

// Rows first .. first + size as left operand, words along d: to[r][row_words(D)].
template <class Product, class T>
inline void pack_along_d(RowsOf<T> x, int64_t first, int64_t size, int64_t dim, uint32_t* to) {
  using Packed = typename Product::Packed;
  const int64_t width = row_words<Product>(dim), part = width / Product::kParts;
  for (int64_t r = 0; r < size; ++r) {
    const T* row = x[first + r];
    for (int64_t w = 0; w < part; w += kLanes) {
      const int64_t d = w * Product::kDepth;
      store_parts(to + r * width + w, part,
                  row ? Product::load_along(row + d, dim - d) : Packed{});
    }
  }
}

// ... as right operand, words across d: to[r / kDepth][round_up(D, kLanes)]. size is even.
template <class Product, class T>
inline void pack_across_d(RowsOf<T> x, int64_t first, int64_t size, int64_t dim, uint32_t* to) {
  const int64_t width = round_up(dim, kLanes);
  const int64_t apart = words<Product>(size) / Product::kParts * width;
  for (int64_t r = 0; r < size; r += Product::kDepth) {
    const T* rows[Product::kDepth];
    for (int i = 0; i < Product::kDepth; ++i) rows[i] = x[first + r + i];
    for (int64_t d = 0; d < width; d += kLanes) {
      store_parts(to + d, apart, Product::load_across(rows, d, dim - d));
    }
    to += width;
  }
}

// to[w][r] = from[r][w] for `rows` x `width` words, both whole vectors; at most `keep` rows of `to`.
inline void transpose_words(const uint32_t* from, int64_t from_stride, int64_t rows, int64_t width,
                            uint32_t* to, int64_t to_stride, int64_t keep) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    for (int64_t w = 0; w < width; w += kLanes) {
      Words tile[kLanes];
      for (int i = 0; i < kLanes; ++i) tile[i] = load_words(from + (r + i) * from_stride + w);
      transpose(tile);
      const int64_t count = smaller(kLanes, keep - w);
      for (int i = 0; i < count; ++i) store_words(to + (w + i) * to_stride + r, tile[i]);
    }
  }
}

// Rows `count` elements on, up to whole steps of a product: zeros. to[parts][steps][stride]
template <class Product>
inline void pad_steps(uint32_t* to, int64_t apart, int64_t count, int64_t stride) {
  const int64_t steps = words<Product>(count) / Product::kParts;
  for (int64_t step = ceil_div(count, Product::kDepth); step < steps; ++step) {
    store_parts(to + step * stride, apart, typename Product::Packed{});
  }
}

// Rows of float32 to memory: `count` rows of D from `from`, times `factor`.
template <class T>
inline void store_row(T* to, const float* from, int64_t dim, Floats factor) {
  for (int64_t d = 0; d < dim; d += kLanes) {
    store_elements(to + d, mul(load(from + d), factor), dim - d);
  }
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
