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

#include "../bottleneck_attention.hpp"
#include "launch.cuh"
#include "pipeline.cuh"
#include "tiles.cuh"

namespace mbt_fast::cuda {

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
  int stream_count, items, shift;
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

// Tiles of both walks: brought by the copy engine, mended where they hold padding or shared slots;
// and results on their way back to rows in global memory.

constexpr int kTileMended = 3;  // named barriers; 1 and 2 are the groups' own
constexpr int kDsShared = 4;

template <int kDim, int kRows>
constexpr uint32_t kTileBytes = kRows * kDim * 2;

// kRows rows of all channels: panel after panel.
template <int kDim, int kRows>
MBT_DEVICE void load_boxes(SharedAddress to, const TensorMap& map, SharedAddress full, int first,
                           int head, int which, int example) {
  for (int panel = 0; panel < kDim / static_cast<int>(kPanelColumns); ++panel)
    for (int row = 0; row < kRows; row += kGroupRows)
      tensor_load(to + (panel * kRows + row) * kPanelRowBytes, map, full, panel * kPanelColumns,
                  first + row, head, which, example);
}

MBT_DEVICE int consumer_thread() { return computed_here(thread_index()) - kWarpGroup; }

// Zeros for the padding in a tile. All consumers share the work.
template <int kDim, int kRows>
MBT_DEVICE void clear_padding(SharedAddress tile, const KeyTiles<kRows>& tiles, int first) {
  const int begin = (tiles.first_hole(first) - first) * 8;
  const int end = (tiles.end_of_holes(first) - first) * 8;
#pragma unroll 1
  for (int panel = 0; panel < kDim / static_cast<int>(kPanelColumns); ++panel)
#pragma unroll 1
    for (int chunk = begin + consumer_thread(); chunk < end; chunk += kConsumerThreads)
      store_shared(tile + panel * kRows * kPanelRowBytes + chunk * 16, Words{0, 0, 0, 0});
}

// The gradient of shared slots in place of what `dout` holds for them.
template <int kDim, int kRows>
MBT_DEVICE void fill_slots(SharedAddress tile, const BackwardParameters& parameters,
                           const BackwardItem& item, int first) {
  constexpr int kChunks = kDim / 8;
  const int begin = item.rows.first_slot > first ? item.rows.first_slot : first;
  const int end = item.rows.count < first + kRows ? item.rows.count : first + kRows;
#pragma unroll 1
  for (int i = consumer_thread(); i < (end - begin) * kChunks; i += kConsumerThreads) {
    const int row = begin + i / kChunks, chunk = i % kChunks;
    store_shared(tile + chunk / 8 * kRows * kPanelRowBytes + swizzled(row - first, chunk % 8),
                 dslots_row<kDim>(parameters, item, row - item.rows.first_slot)[chunk]);
  }
}

// What consumers stored is there for all of them, and for the tensor cores.
MBT_DEVICE void publish(int barrier) {
  fence_async_proxy();
  named_barrier_sync(barrier, kConsumerThreads);
}

// A tile of queries, keys or values as the products may read it.
template <int kDim, int kRows>
MBT_DEVICE void mend_tile(SharedAddress tile, const KeyTiles<kRows>& tiles, int first) {
  if (!tiles.has_holes(first)) return;
  clear_padding<kDim>(tile, tiles, first);
  publish(kTileMended);
}

template <int kDim, int kRows>
MBT_DEVICE void mend_dout(SharedAddress tile, const KeyTiles<kRows>& tiles,
                          const BackwardParameters& parameters, const BackwardItem& item,
                          int first) {
  const bool has_slots = parameters.dslots && first + kRows > item.rows.first_slot;
  if (!has_slots) return mend_tile<kDim>(tile, tiles, first);
  if (tiles.has_holes(first)) clear_padding<kDim>(tile, tiles, first);
  fill_slots<kDim, kRows>(tile, parameters, find_again(parameters, item), first);
  publish(kTileMended);
}

// Row of a tile that a register of this thread belongs to; `half` is 0 or 1.
MBT_DEVICE int fragment_row(int group, int half) {
  const int lane = computed_here(thread_index()) % kWarpGroup;
  return kGroupRows * group + lane / kWarp * 16 + lane % kWarp / 4 + 8 * half;
}

// 64 x kDim registers of a warp group to rows of dqkv, by way of shared memory that is the group's
// own: 64 rows from `group` on in panels of 128. Zeros for rows that do not count.
template <class Element, int kDim>
MBT_DEVICE void store_rows(const BackwardParameters& parameters, const BackwardItem& item,
                           SharedAddress panels, int group, int which,
                           const float (&values)[kDim / 2], float factor) {
  constexpr int kChunks = kDim / 8;
  constexpr uint32_t kPanelBytes = kBackwardTile * kPanelRowBytes;
  const int thread = computed_here(thread_index()), lane = thread % kWarp;
  sync_warp();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = fragment_row(group, half);
    const bool is_valid = item.rows.is_valid(item.first_row + row);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const float x = values[4 * chunk + 2 * half] * factor;
      const float y = values[4 * chunk + 2 * half + 1] * factor;
      store_shared(panels + chunk / 8 * kPanelBytes + swizzled(row, chunk % 8) + lane % 4 * 4,
                   is_valid ? pack<Element>(x, y) : 0u);
    }
  }
  sync_warp();
  const int first = kGroupRows * group + thread % kWarpGroup / kWarp * 16;
  for (int i = lane; i < 16 * kChunks; i += kWarp) {
    const int row = first + i / kChunks, chunk = i % kChunks;
    if (item.first_row + row < item.rows.count)
      dqkv_row<kDim>(parameters, item, item.first_row + row, which)[chunk] =
          load_shared_words(panels + chunk / 8 * kPanelBytes + swizzled(row, chunk % 8));
  }
}

// Zeros for the rows of an item that nobody needs.
template <int kDim>
MBT_DEVICE void store_no_rows(const BackwardParameters& parameters, const BackwardItem& item,
                              int which) {
  constexpr int kChunks = kDim / 8;
  for (int i = consumer_thread(); i < kBackwardTile * kChunks; i += kConsumerThreads) {
    const int row = item.first_row + i / kChunks;
    if (row < item.rows.count)
      dqkv_row<kDim>(parameters, item, row, which)[i % kChunks] = Words{0, 0, 0, 0};
  }
}

}  // namespace mbt_fast::cuda
