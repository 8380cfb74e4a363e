// The one product of all kernels, C += A B or C = A B as in multiply.hpp, on tiles of AMX.
//
//              tile 6  tile 7   B  [steps][n]
//             +-------+-------+
//      tile 4 | tile  | tile  |      Two by two tiles of C stay in registers; 16 steps (32 elements
//      A      |   0   |   1   |      of bfloat16) take two loads of A, two of B and four products.
//      [m]    +-------+-------+      Whole tiles only: rows, vectors and steps of operands are padded
//      tile 5 | tile  | tile  |      to 16, with zeros in steps; results in padded rows are garbage
//             |   2   |   3   |      that nobody reads.
//             +-------+-------+
//
// The parts of split.hpp lie side by side in the steps of both operands, and their products are
// added to the same tiles, smallest first.
#pragma once

#include "products.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

// Blocks of the attention kernels, in whole pairs of tiles.
constexpr int64_t kKeys = 96;
constexpr int64_t kQueryVectors = 4;
constexpr int64_t kStepsAtOnce = kTileSide;

template <int kTile, bool kAdd>
MBT_FAST_INLINE void start_tile(const float* c, int64_t stride) {
  if constexpr (kAdd) {
    load_tile<kTile>(c, stride);
  } else {
    zero_tile<kTile>();
  }
}

// Tiles 0 to 3 += one step of tiles: A from `a`, B from `b`.
template <int kRows, int kColumns>
MBT_FAST_INLINE void step_tiles(Left a, Right b) {
  load_tile<4>(a.words, a.stride);
  load_tile<6>(b.words, b.stride);
  multiply_tiles<0, 4, 6>();
  if constexpr (kColumns == 2) {
    load_tile<7>(b.words + kTileSide, b.stride);
    multiply_tiles<1, 4, 7>();
  }
  if constexpr (kRows == 2) {
    load_tile<5>(a.words + kTileSide * a.stride, a.stride);
    multiply_tiles<2, 5, 6>();
    if constexpr (kColumns == 2) multiply_tiles<3, 5, 7>();
  }
}

// What vectors do meanwhile: called after every step of tiles.
struct Nothing {
  void operator()() const {}
};

// One block of C: kRows x kColumns tiles.
template <class Product, bool kAdd, int kRows, int kColumns, class Meanwhile>
inline void multiply_block(Left a, Right b, Result c, int64_t steps, Meanwhile& meanwhile) {
  const int64_t part = a.stride / Product::kParts;  // steps from part to part, of both operands
  float* const below = c.values + kTileSide * c.stride;
  start_tile<0, kAdd>(c.values, c.stride);
  if constexpr (kColumns == 2) start_tile<1, kAdd>(c.values + kTileSide, c.stride);
  if constexpr (kRows == 2) start_tile<2, kAdd>(below, c.stride);
  if constexpr (kRows == 2 && kColumns == 2) start_tile<3, kAdd>(below + kTileSide, c.stride);
  for (int sum = 2; sum >= 0; --sum) {  // of the numbers of two parts
    for (int left = 0; left <= sum; ++left) {
      const int right = sum - left;
      if (larger(left, right) >= Product::kParts) continue;
      for (int64_t step = 0; step < steps / Product::kParts; step += kTileSide) {
        step_tiles<kRows, kColumns>(
            {a.words + left * part + step, a.stride},
            {b.words + (right * part + step) * b.stride, b.stride});
        meanwhile();
      }
    }
  }
  store_tile<0>(c.values, c.stride);
  if constexpr (kColumns == 2) store_tile<1>(c.values + kTileSide, c.stride);
  if constexpr (kRows == 2) store_tile<2>(below, c.stride);
  if constexpr (kRows == 2 && kColumns == 2) store_tile<3>(below + kTileSide, c.stride);
}

template <class Product, bool kAdd, int kColumns, class Meanwhile>
inline void multiply_columns(Left a, Right b, Result c, int64_t rows, int64_t steps,
                             Meanwhile& meanwhile) {
  for (; rows > kTileSide; rows -= 2 * kTileSide) {
    multiply_block<Product, kAdd, 2, kColumns>(a, b, c, steps, meanwhile);
    a.words += 2 * kTileSide * a.stride;
    c.values += 2 * kTileSide * c.stride;
  }
  if (rows > 0) multiply_block<Product, kAdd, 1, kColumns>(a, b, c, steps, meanwhile);
}

// C [rows][vectors * kLanes] (+)= A [rows][steps] B [steps][vectors * kLanes]
template <class Product, bool kAdd, class Meanwhile = const Nothing>
inline void multiply(Left a, Right b, Result c, int64_t rows, int64_t vectors, int64_t steps,
                     Meanwhile& meanwhile = Nothing()) {
  for (; vectors > 1; vectors -= 2) {
    multiply_columns<Product, kAdd, 2>(a, b, c, rows, steps, meanwhile);
    b.words += 2 * kTileSide;
    c.values += 2 * kTileSide;
  }
  if (vectors > 0) multiply_columns<Product, kAdd, 1>(a, b, c, rows, steps, meanwhile);
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
