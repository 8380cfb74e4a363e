// The one product of all kernels: C += A B, or C = A B, on words in the layouts of products.hpp.
//
//            B  [steps][n]   right operand: vectors of words
//            +-----------+
//            |           |           C [m][n] float32. A tile of kRows x kVectors vectors stays in
//            +-----------+           registers; in each step it takes kVectors loads of B and
//   +------+ +---+-------+           kRows broadcasts of A. Tiles are as wide as n allows, and as
//   |      | |kV |       |           high as the registers do:
//   |      | +---+       |
//   +------+ +-----------+              vectors         1    2    3    4
//  A [m][steps]      C                  rows, 32 reg.  14   12    8    6
//  left operand: single words           rows, 16 reg.   8    5    4    -
#pragma once

#include "products.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

constexpr bool kIsWide = kRegisters == 32;  // AVX-512; else AVX2

// Blocks of the attention kernels: 48 queries; keys as many as leave their scores in the first cache,
// of 32 KB where vectors are narrow.
constexpr int64_t kKeys = kIsWide ? 96 : 48;
constexpr int64_t kQueryVectors = kIsWide ? 3 : 6;
constexpr int64_t kStepsAtOnce = 1;

constexpr int kWidest = kIsWide ? 4 : 3;  // vectors of a tile

constexpr int rows_of_tile(int vectors) {
  if (kIsWide) return vectors == 4 ? 6 : vectors == 3 ? 8 : vectors == 2 ? 12 : 14;
  return vectors == 3 ? 4 : vectors == 2 ? 5 : 8;
}

template <class Product, int kRows, int kVectors, bool kAdd>
MBT_FAST_INLINE void multiply_tile(Left a, Right b, Result c, int64_t steps) {
  Floats sum[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      sum[i][j] = kAdd ? load(c.values + i * c.stride + j * kLanes) : zeros();
    }
  }
  for (int64_t step = 0; step < steps; ++step) {
    Words right[kVectors];
    for (int j = 0; j < kVectors; ++j) right[j] = load_words(b.words + j * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const Words left = splat_word(a.words[i * a.stride + step]);
      for (int j = 0; j < kVectors; ++j) {
        sum[i][j] = Product::multiply_add(left, right[j], sum[i][j]);
      }
    }
    b.words += b.stride;
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) store(c.values + i * c.stride + j * kLanes, sum[i][j]);
  }
}

// The rows that are left below the full tiles: fewer than kRows.
template <class Product, int kRows, int kVectors, bool kAdd>
inline void multiply_last_rows(Left a, Right b, Result c, int64_t rows, int64_t steps) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return multiply_tile<Product, kRows, kVectors, kAdd>(a, b, c, steps);
    multiply_last_rows<Product, kRows - 1, kVectors, kAdd>(a, b, c, rows, steps);
  }
}

template <class Product, int kVectors, bool kAdd>
inline void multiply_columns(Left a, Right b, Result c, int64_t rows, int64_t steps) {
  constexpr int kRows = rows_of_tile(kVectors);
  for (; rows >= kRows; rows -= kRows) {
    multiply_tile<Product, kRows, kVectors, kAdd>(a, b, c, steps);
    a.words += kRows * a.stride;
    c.values += kRows * c.stride;
  }
  multiply_last_rows<Product, kRows - 1, kVectors, kAdd>(a, b, c, rows, steps);
}

// C [rows][vectors * kLanes] (+)= A [rows][steps] B [steps][vectors * kLanes]
template <class Product, bool kAdd>
inline void multiply(Left a, Right b, Result c, int64_t rows, int64_t vectors, int64_t steps) {
  while (vectors > 0) {
    // Five vectors are three and two, not four and one.
    const int64_t parts = ceil_div(vectors, kWidest), width = ceil_div(vectors, parts);
    if (width == 1) multiply_columns<Product, 1, kAdd>(a, b, c, rows, steps);
    if (width == 2) multiply_columns<Product, 2, kAdd>(a, b, c, rows, steps);
    if (width == 3) multiply_columns<Product, 3, kAdd>(a, b, c, rows, steps);
    if constexpr (kWidest == 4) {
      if (width == 4) multiply_columns<Product, 4, kAdd>(a, b, c, rows, steps);
    }
    b.words += width * kLanes;
    c.values += width * kLanes;
    vectors -= width;
  }
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
