// Tiles of the backward's two walks: brought by the copy engine, mended where they hold padding or
// shared slots; and results on their way back to rows in global memory.
#pragma once

#include "backward.cuh"

namespace mbt_fast::cuda {

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
