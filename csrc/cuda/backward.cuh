// Backward of bottleneck attention: what its kernels share.
//
// Notation as in kernels/bottleneck_attention_bwd.py. With p = softmax(scale q k^T), dp = dout v^T:
//
//   delta = rowsum(dout * out) - dlse
//   dv = p^T dout        ds = p * (dp - delta)        dq = scale * ds k        dk = scale * ds^T q
//
// Three launches for all streams. An item of each is a tile of 128 rows of one head:
//
//   delta   delta of 128 rows; the gradient of shared slots; zeros to add dq to
//   keys    dk and dv of 128 keys, which walk along the queries; adds the tile's share of dq
//   dq      rounds the sums to the elements of dqkv
//
// Sums of float32 depend on their order. Where results must repeat, `keys` leaves dq alone, and the
// third launch is `queries` instead: 128 queries walk along the keys. That is seven products, not
// five.
//
// Invariants.
// - Every element of dqkv is written by exactly one block; padding and absent streams get 0.
// - Padding may hold NaN: whatever is summed over is replaced by zeros in shared memory first.
// - Queries that do not count have an infinite sum, hence p = 0. Keys that do not are masked.
// - Where there is one key, softmax is constant: dp and delta are multiplied by 0 there.
#pragma once

#include <math.h>

#include "attention.hpp"
#include "launch.cuh"
#include "pipeline.cuh"
#include "tiles.cuh"

namespace mbt_fast::cuda {

constexpr int kBackwardTile = 128;  // rows of an item

// Queries of a step along the queries. Registers allow no more.
template <int kDim>
constexpr int kQueryTileOf = kDim > 64 ? 64 : 128;

struct BackwardStream {
  TensorMap qkv, douts;  // boxes of kGroupRows rows
  const void *out, *kept, *dout;
  int64_t dout_batch, dout_row, dout_head;  // strides in elements
  const float *stats, *dlse;
  float* rows_state;  // [B, H, tiles * 128 / step, 3, step]: shift, log2 of the sum, delta
  float* dq_sums;     // [B, H, tiles * 2, D / 8, 128, 4]: registers of a product; none if not added
  void* dqkv;
  const int32_t* lengths;
  int rows, tiles;
};

struct BackwardParameters {
  BackwardStream streams[kMaxStreams];
  void* dslots;  // [B, P, H, D]: gradient of the slots before the shared update; none without it
  int stream_count, items;
  int batch, heads, slots;
  float scale, log2_scale;  // and times log2(e)
};

static_assert(sizeof(BackwardParameters) <= 4096, "what every driver takes as arguments");

struct BackwardItem {
  int number;
  const BackwardStream& stream;
  int example, head, first_row;
  Rows rows;

  MBT_DEVICE bool is_needed() const { return rows.any_valid(first_row, kBackwardTile); }
  // 0 where softmax runs over a single key.
  MBT_DEVICE float choice() const {
    return rows.length + rows.count - rows.first_slot > 1 ? 1.0f : 0.0f;
  }
};

// Items are numbered as in the forward.
MBT_DEVICE BackwardItem backward_item(const BackwardParameters& parameters, int number) {
  const int item = number, heads = parameters.batch * parameters.heads;
  int m = 0;
  while (number >= parameters.streams[m].tiles * heads)
    number -= parameters.streams[m++].tiles * heads;
  const BackwardStream& stream = parameters.streams[m];
  const int head = number / stream.tiles, example = head / parameters.heads;
  return {item, stream, example, head % parameters.heads, number % stream.tiles * kBackwardTile,
          rows_of(stream.rows, parameters.slots, stream.lengths, example)};
}

// The same item, found again: nothing of it stays in registers during a walk.
MBT_DEVICE BackwardItem find_again(const BackwardParameters& parameters, const BackwardItem& item) {
  return backward_item(parameters, computed_here(item.number));
}

// Number of this head of this example.
MBT_DEVICE int64_t head_number(const BackwardParameters& parameters, const BackwardItem& item) {
  return int64_t{item.example} * parameters.heads + item.head;
}

// What the walks need of kQueryTileOf queries, three times as many floats.
template <int kDim>
MBT_DEVICE float* rows_state(const BackwardParameters& parameters, const BackwardItem& item,
                             int first_row) {
  return item.stream.rows_state +
         3 * (head_number(parameters, item) * item.stream.tiles * kBackwardTile + first_row);
}

// The sums for 64 rows.
template <int kDim>
MBT_DEVICE float* dq_sums(const BackwardParameters& parameters, const BackwardItem& item,
                          int first_row) {
  return item.stream.dq_sums +
         kDim * (head_number(parameters, item) * item.stream.tiles * kBackwardTile + first_row);
}

// One row of dq, dk or dv (which = 0, 1, 2).
template <int kDim>
MBT_DEVICE Words* dqkv_row(const BackwardParameters& parameters, const BackwardItem& item, int row,
                           int which) {
  const int64_t number = int64_t{item.example} * item.stream.rows + row;
  return static_cast<Words*>(item.stream.dqkv) +
         ((3 * number + which) * parameters.heads + item.head) * (kDim / 8);
}

// One row of the gradient of shared slots.
template <int kDim>
MBT_DEVICE Words* dslots_row(const BackwardParameters& parameters, const BackwardItem& item,
                             int slot) {
  const int64_t number = int64_t{item.example} * parameters.slots + slot;
  return static_cast<Words*>(parameters.dslots) +
         (number * parameters.heads + item.head) * (kDim / 8);
}

}  // namespace mbt_fast::cuda
