// One block of a matrix product in a Linear: out = left right^T + bias, left right, or left^T right.
//
//                      columns
//             +-------+-------+-------+
//             | panel | panel | panel |  steps     The right operand is packed once per block, in
//             +-------+-------+-------+            panels as wide as a tile of registers: 0.6 MB,
//     steps                                        which stays in the second cache.
//   +-------+ +-------+-------+-------+
//   | rows  | |  tile, in registers.. |            The left one is read where it lies, a few rows at
//   +-------+ +-----------------------+            a time, which stay in the first.
//
// A long sum is made in pieces of so many steps, which depend on its length alone; pieces are added
// up in their order. Inside a piece each element is one chain of multiply-adds. So neither the block
// nor the tile in which an element is computed changes its bits, and blocks may be cut for threads at
// will.
#pragma once

#include "arena.hpp"
#include "simd/kernels.hpp"
#include "simd/multiply.hpp"
#include "simd/pack.hpp"
#include "simd/products.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

constexpr int64_t kPanelVectors = 3;
constexpr int64_t kPanel = kPanelVectors * kLanes;
constexpr int64_t kTileRows = rows_of_tile(kPanelVectors);
constexpr int64_t kLeftRows = 96;  // packed at once, where they are packed

// How long a piece of a sum is, in words, and how many columns a block has. Where both operands are
// packed for every block, wide blocks repeat less of it.
struct Pieces {
  int64_t steps, columns;
};
constexpr Pieces kPieces{768, 4 * kPanel};
constexpr Pieces kTransposedPieces{384, 8 * kPanel};

template <bool kTransposedLeft>
constexpr Pieces pieces() {
  return kTransposedLeft ? kTransposedPieces : kPieces;
}

template <class Product, bool kTransposedLeft>
inline int64_t piece_steps(int64_t depth) {
  const int64_t steps = words<Product>(depth);
  const int64_t count = larger(1, ceil_div(steps, pieces<kTransposedLeft>().steps));
  return round_up(ceil_div(steps, count), kLanes);
}

template <class Product, bool kTransposedLeft>
struct LinearBuffers {
  uint32_t* right;  // one piece: [panels][steps][kPanel]
  uint32_t* left;   // [kLeftRows][steps]
  float* tile;      // [kTileRows][columns]
  float* sums;      // of the pieces so far: [rows][columns]

  LinearBuffers(Arena& arena, int64_t rows, int64_t columns, int64_t depth) {
    const int64_t steps = piece_steps<Product, kTransposedLeft>(depth);
    const int64_t width = round_up(columns, kPanel);
    right = arena.take<uint32_t>(steps * width);
    left = arena.take<uint32_t>(kLeftRows * steps);
    tile = arena.take<float>(kTileRows * width);
    sums = arena.take<float>(steps < words<Product>(depth) ? rows * width : 0);
  }
};

template <class Product, bool kTransposedLeft>
int64_t linear_scratch(int64_t rows, int64_t columns, int64_t depth) {
  Arena arena(nullptr);
  LinearBuffers<Product, kTransposedLeft>(arena, rows, columns, depth);
  return arena.used();
}

// `count` rows of a matrix from `first` on, and its elements from `offset` on.
template <class T>
MBT_FAST_INLINE RowsOf<T> rows_from(const Matrix& x, int64_t first, int64_t count, int64_t offset) {
  const T* data = static_cast<const T*>(x.data) + first * x.stride + offset;
  return {{data, nullptr, x.stride, 0}, count, count};
}

// Words along a row of x become a column: to[w][width], for `count` rows and `size` elements. So many
// rows at once are more than the hardware foresees; foreseen, they take half the time.
template <class Product, class T>
inline void pack_transposed(RowsOf<T> x, int64_t count, int64_t size, uint32_t* to, int64_t width) {
  for (int64_t w = 0; w < words<Product>(size); w += kLanes) {
    const int64_t d = w * Product::kDepth;
    for (int64_t r = 0; r < count; r += kLanes) {
      Words tile[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const T* row = x[r + i];
        if (row) __builtin_prefetch(row + d + 4 * kLanes * Product::kDepth);
        tile[i] = row ? Product::load_along(row + d, size - d) : splat_word(0);
      }
      transpose(tile);
      for (int64_t i = 0; i < kLanes; ++i) store_words(to + (w + i) * width + r, tile[i]);
    }
  }
}

// Words down `size` rows of x become a row: to[d][steps], for `count` columns. Each row lies on a page
// of its own, so the next ones are asked for.
template <class Product, class T>
inline void pack_columns(RowsOf<T> x, int64_t count, int64_t size, uint32_t* to, int64_t steps) {
  for (int64_t w = 0; w < words<Product>(size); w += kLanes) {
    for (int64_t d = 0; d < count; d += kLanes) {
      Words tile[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const T* rows[Product::kDepth];
        for (int j = 0; j < Product::kDepth; ++j) {
          const int64_t row = (w + i) * Product::kDepth + j;
          rows[j] = x[row];
          const T* next = x[row + kLanes * Product::kDepth];
          if (next) __builtin_prefetch(next + d);
        }
        tile[i] = Product::load_across(rows, d, count - d);
      }
      transpose(tile);
      for (int64_t i = 0; i < kLanes; ++i) store_words(to + (d + i) * steps + w, tile[i]);
    }
  }
}

// A piece of the right operand, elements first .. first + size of the sum: to[panels][steps][kPanel].
template <class Product, class T>
inline void pack_right_rows(const LinearBlock& block, int64_t first, int64_t size, uint32_t* to,
                            int64_t steps) {
  const RowsOf<T> x = rows_from<T>(block.right, first, size, 0);
  for (int64_t s = 0; s < words<Product>(size); ++s) {
    const T* rows[Product::kDepth];
    for (int j = 0; j < Product::kDepth; ++j) rows[j] = x[s * Product::kDepth + j];
    for (int64_t column = 0; column < block.columns; column += kPanel) {
      uint32_t* panel = to + column * steps + s * kPanel;
      const int64_t last = smaller(column + kPanel, block.columns);
      for (int64_t d = column; d < last; d += kLanes) {
        store_words(panel + d - column, Product::load_across(rows, d, block.columns - d));
      }
    }
  }
}

template <class Product, class T, bool kTransposedRight>
inline void pack_right(const LinearBlock& block, int64_t first, int64_t size, uint32_t* to,
                       int64_t steps) {
  if constexpr (!kTransposedRight) return pack_right_rows<Product, T>(block, first, size, to, steps);
  for (int64_t column = 0; column < block.columns; column += kPanel) {
    const int64_t width = smaller(kPanel, block.columns - column);
    const RowsOf<T> x = rows_from<T>(block.right, column, width, first);
    pack_transposed<Product>(x, round_up(width, kLanes), size, to + column * steps, kPanel);
  }
}

// Rows `row` .. `row + count` of a piece of the left operand: where they lie, if they can be read as
// words there, else packed.
template <class Product, class T, bool kTransposedLeft>
inline Left left_operand(const LinearBlock& block, int64_t row, int64_t count, int64_t first,
                         int64_t size, uint32_t* to, int64_t steps) {
  if constexpr (kTransposedLeft) {
    pack_columns<Product>(rows_from<T>(block.left, first, size, row), count, size, to, steps);
    return {to, steps};
  } else {
    const RowsOf<T> x = rows_from<T>(block.left, row, count, first);
    constexpr bool kAreWords = sizeof(T) * Product::kDepth == sizeof(uint32_t);
    const bool is_aligned = reinterpret_cast<uintptr_t>(x[0]) % sizeof(uint32_t) == 0;
    if (kAreWords && is_aligned && size % Product::kDepth == 0 && x.rows.stride % Product::kDepth == 0) {
      return {reinterpret_cast<const uint32_t*>(x[0]), x.rows.stride / Product::kDepth};
    }
    pack_along_d<Product>(x, 0, count, size, to);
    return {to, row_words<Product>(size)};
  }
}

// A tile of a piece is added to the sums; the last piece completes the rows of the result.
template <class T>
inline void finish(const LinearBlock& block, const float* tile, int64_t width, int64_t row,
                   int64_t count, float* sums, bool is_first, bool is_last) {
  for (int64_t i = 0; i < count; ++i) {
    T* out = static_cast<T*>(block.out) + (row + i) * block.out_stride;
    float* sum = sums + (row + i) * width;
    for (int64_t j = 0; j < block.columns; j += kLanes) {
      Floats x = load(tile + i * width + j);
      if (!is_first) x = add(load(sum + j), x);
      if (!is_last) {
        store(sum + j, x);
        continue;
      }
      const int64_t n = block.columns - j;
      if (block.bias) x = add(x, load_elements(block.bias + j, n));
      store_elements(out + j, x, n);
    }
  }
}

template <class Product, class T, bool kTransposedLeft, bool kTransposedRight>
void linear_block(const LinearBlock& block, void* scratch) {
  Arena arena(scratch);
  const LinearBuffers<Product, kTransposedLeft> b(arena, block.rows, block.columns, block.depth);
  const int64_t steps = piece_steps<Product, kTransposedLeft>(block.depth);
  const int64_t width = round_up(block.columns, kPanel);
  for (int64_t first = 0; first < block.depth; first += steps * Product::kDepth) {
    const int64_t size = smaller(steps * Product::kDepth, block.depth - first);
    pack_right<Product, T, kTransposedRight>(block, first, size, b.right, steps);
    for (int64_t group = 0; group < block.rows; group += kLeftRows) {
      const int64_t rows = smaller(kLeftRows, block.rows - group);
      const Left left = left_operand<Product, T, kTransposedLeft>(block, group, rows, first, size,
                                                                  b.left, steps);
      for (int64_t row = 0; row < rows; row += kTileRows) {
        const int64_t count = smaller(kTileRows, rows - row);
        for (int64_t column = 0; column < block.columns; column += kPanel) {
          const int64_t vectors = ceil_div(smaller(kPanel, block.columns - column), kLanes);
          multiply<Product, false>({left.words + row * left.stride, left.stride},
                                   {b.right + column * steps, kPanel}, {b.tile + column, width},
                                   count, vectors, words<Product>(size));
        }
        finish<T>(block, b.tile, width, group + row, count, b.sums, first == 0,
                  first + size == block.depth);
      }
    }
  }
}

// sums[c] = the sum of so many rows of c; by 128 rows, then over these sums, in their order.
template <class T>
void sum_of_rows(const Matrix& x, int64_t count, int64_t columns, float* sums) {
  constexpr int64_t kRowsAtOnce = 128, kVectors = 4;
  const RowsOf<T> rows = rows_from<T>(x, 0, count, 0);
  for (int64_t c = 0; c < columns; c += kVectors * kLanes) {
    Floats total[kVectors] = {};
    for (int64_t first = 0; first < count; first += kRowsAtOnce) {
      Floats sum[kVectors] = {};
      const int64_t last = smaller(count, first + kRowsAtOnce);
      for (int64_t r = first; r < last; ++r) {
        for (int64_t v = 0; v < kVectors; ++v) {
          const int64_t at = c + v * kLanes;
          sum[v] = add(sum[v], load_elements(rows[r] + at, columns - at));
        }
      }
      for (int64_t v = 0; v < kVectors; ++v) total[v] = add(total[v], sum[v]);
    }
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t at = c + v * kLanes;
      store_elements(sums + at, total[v], columns - at);
    }
  }
}

template <class Product, class T, bool kTransposedLeft, bool kTransposedRight>
constexpr LinearProduct linear_product() {
  return {&linear_block<Product, T, kTransposedLeft, kTransposedRight>,
          &linear_scratch<Product, kTransposedLeft>, pieces<kTransposedLeft>().columns};
}

template <class Product, class T>
constexpr LinearKernels linear_kernels() {
  return {linear_product<Product, T, false, true>(), linear_product<Product, T, false, false>(),
          linear_product<Product, T, true, false>(), kPanel, &sum_of_rows<T>};
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
