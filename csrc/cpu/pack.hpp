// From rows in memory to the four layouts of products.hpp. Rows beyond the last become zeros, so
// that a block is always whole; words beyond D too.
#pragma once

#include "common.hpp"
#include "head.hpp"

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

template <class Product>
constexpr int64_t words(int64_t elements) {
  return ceil_div(elements, Product::kDepth);
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

// Rows first .. first + size as left operand, words along d: to[r][row_words(D)].
template <class Product, class T>
inline void pack_along_d(RowsOf<T> x, int64_t first, int64_t size, int64_t dim, uint32_t* to) {
  const int64_t width = row_words<Product>(dim);
  for (int64_t r = 0; r < size; ++r) {
    const T* row = x[first + r];
    for (int64_t w = 0; w < width; w += kLanes) {
      const int64_t d = w * Product::kDepth;
      store_words(to + r * width + w, row ? Product::load_along(row + d, dim - d) : splat_word(0));
    }
  }
}

// ... as right operand, words across d: to[r / kDepth][round_up(D, kLanes)]. size is even.
template <class Product, class T>
inline void pack_across_d(RowsOf<T> x, int64_t first, int64_t size, int64_t dim, uint32_t* to) {
  const int64_t width = round_up(dim, kLanes);
  for (int64_t r = 0; r < size; r += Product::kDepth) {
    const T* rows[Product::kDepth];
    for (int i = 0; i < Product::kDepth; ++i) rows[i] = x[first + r + i];
    for (int64_t d = 0; d < width; d += kLanes) {
      store_words(to + d, Product::load_across(rows, d, dim - d));
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

// Rows of float32 to memory: `count` rows of D from `from`, times `factor`.
template <class T>
inline void store_row(T* to, const float* from, int64_t dim, Floats factor) {
  for (int64_t d = 0; d < dim; d += kLanes) {
    store_elements(to + d, mul(load(from + d), factor), dim - d);
  }
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
