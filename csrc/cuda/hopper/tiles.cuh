// Which rows a block works on, and which keys it walks along.
//
// A stream has S = N + P rows: own tokens, then slots. `length` of the own tokens are valid::
//
//   row     0 ... length-1 | length ... N-1 | N ... N+P-1
//           valid            padding          valid (slots)
//
// Keys come in tiles of `key_tile` rows. Tiles of nothing but padding are skipped; in the others
// padding is masked, and its values are replaced by zeros, for they may be NaN.
#pragma once

#include "instructions.cuh"

namespace mbt_fast::cuda {

// Rows of one example of one stream.
struct Rows {
  int count;        // S
  int length;       // valid own tokens
  int first_slot;   // N
  bool is_present;  // or no row is valid

  // Without branches: threads differ in their rows.
  MBT_DEVICE bool is_valid(int row) const {
    return is_present & ((row < length) | ((row >= first_slot) & (row < count)));
  }
  // Whether any of the rows first ... first + size - 1 is valid.
  MBT_DEVICE bool any_valid(int first, int size) const {
    const bool has_slot = first_slot < count && first + size > first_slot && first < count;
    return is_present && (first < length || has_slot);
  }
};

MBT_DEVICE Rows rows_of(int count, int slots, const int32_t* lengths, int example) {
  const int own = count - slots;
  if (!lengths) return {count, own, own, true};
  const int given = lengths[example];
  const int length = given < 0 ? 0 : given > own ? own : given;
  return {count, length, own, length > 0};
}

// Tiles of keys that hold a valid one: the first of the stream, and those of the slots. None where
// no query needs them.
template <int kTile>
struct KeyTiles {
  int front, back, count;
  Rows rows;

  MBT_DEVICE KeyTiles(const Rows& rows, bool is_needed) : rows(rows) {
    front = (rows.length + kTile - 1) / kTile;
    const int of_first_slot = rows.first_slot / kTile;
    back = front > of_first_slot ? front : of_first_slot;
    const int end = rows.first_slot < rows.count ? (rows.count + kTile - 1) / kTile : back;
    count = is_needed ? front + (end > back ? end - back : 0) : 0;
  }
  // Row at which the tile with this number begins.
  MBT_DEVICE int first_row(int number) const {
    return kTile * (number < front ? number : back + number - front);
  }
  MBT_DEVICE int first_hole(int first) const { return rows.length > first ? rows.length : first; }
  MBT_DEVICE int end_of_holes(int first) const {
    return rows.first_slot < first + kTile ? rows.first_slot : first + kTile;
  }
  // Whether the tile that begins at this row holds padding.
  MBT_DEVICE bool has_holes(int first) const { return first_hole(first) < end_of_holes(first); }
  MBT_DEVICE bool needs_mask(int first) const {
    return has_holes(first) || first + kTile > rows.count;
  }
};

// The sizes of key tiles there are, the largest first: what registers and two stages allow. For 128
// channels a kernel with 176, 144 and 128 spills, though with each alone it does not.
// 1573 rows are 9 x 176 or 11 x 144 but for 11 rows, and 405 are 2 x 208.
template <int kDim>
struct KeyTileSizes;
template <>
struct KeyTileSizes<64> {
  static constexpr int kLarge = 208, kMiddle = 176, kSmall = 128;
};
template <>
struct KeyTileSizes<128> {
  static constexpr int kLarge = 176, kMiddle = 144, kSmall = 112;
};

// By rule: the one that computes the fewest rows, and among those the largest.
template <int kDim>
int choose_key_tile(int64_t rows) {
  using Sizes = KeyTileSizes<kDim>;
  int chosen = 0;
  int64_t least = INT64_MAX;
  for (const int tile : {Sizes::kLarge, Sizes::kMiddle, Sizes::kSmall}) {
    const int64_t computed = (rows + tile - 1) / tile * tile;
    if (computed < least) {
      least = computed;
      chosen = tile;
    }
  }
  return chosen;
}

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// work(Constant<key_tile>).
template <int kDim, class Work>
MBT_DEVICE void with_key_tile(int key_tile, const Work& work) {
  using Sizes = KeyTileSizes<kDim>;
  if (key_tile == Sizes::kLarge)
    work(Constant<Sizes::kLarge>());
  else if (key_tile == Sizes::kMiddle)
    work(Constant<Sizes::kMiddle>());
  else
    work(Constant<Sizes::kSmall>());
}

}  // namespace mbt_fast::cuda
