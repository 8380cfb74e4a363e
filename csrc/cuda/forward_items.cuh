// What a block of the forward works on, item after item, and where it keeps it.
#pragma once

#include "attention.hpp"
#include "launch.cuh"
#include "pipeline.cuh"
#include "tiles.cuh"

namespace mbt_fast::cuda {

constexpr int kQueryTile = kConsumers * kGroupRows;

struct ForwardStream {
  TensorMap queries, keys;  // of qkv: boxes of 64 rows, and of a key tile
  void *out, *kept;
  float *lse, *stats;
  const int32_t* lengths;
  int rows, key_tile, query_tiles;
};

struct ForwardParameters {
  ForwardStream streams[kMaxStreams];
  int stream_count, items;  // an item is a query tile of a head
  int batch, heads, slots;
  float scale;  // times log2(e), and positive
  bool negate;  // scores
};

// What a block works on at a time.
struct ForwardItem {
  const ForwardStream& stream;
  int example, head, first_row;
  Rows rows;

  MBT_DEVICE bool is_needed() const { return rows.any_valid(first_row, kQueryTile); }
};

// Items are numbered stream by stream, the longest first, and there head by head: neighbours share
// keys in the L2 cache.
MBT_DEVICE ForwardItem forward_item(const ForwardParameters& parameters, int number) {
  int m = 0;
  const int heads = parameters.batch * parameters.heads;
  while (number >= parameters.streams[m].query_tiles * heads)
    number -= parameters.streams[m++].query_tiles * heads;
  const ForwardStream& stream = parameters.streams[m];
  const int head = number / stream.query_tiles, tile = number % stream.query_tiles;
  const int example = head / parameters.heads;
  return {stream, example, head % parameters.heads, tile * kQueryTile,
          rows_of(stream.rows, parameters.slots, stream.lengths, example)};
}

// Shared memory.
template <int kDim>
struct ForwardMemory : WalkBarriers {
  static constexpr int kMaxTile = KeyTileSizes<kDim>::kLarge;
  static constexpr int kPanels = kDim / kPanelColumns;
  static constexpr uint32_t kGroupBytes = kGroupRows * kDim * 2;
  static constexpr uint32_t kStageBytes = kMaxTile * kDim * 2;
  static constexpr uint32_t kQueries = 1024;
  static constexpr uint32_t kKeys = kQueries + kConsumers * kGroupBytes;
  static constexpr uint32_t kValues = kKeys + kStages * kStageBytes;
  static constexpr uint32_t kBytes = kValues + kStages * kStageBytes;
  static_assert(kBytes <= kSharedMemory);

  MBT_DEVICE SharedAddress queries(int group) const {
    return base + kQueries + group * kGroupBytes;
  }
  MBT_DEVICE SharedAddress keys(int stage) const { return base + kKeys + stage * kStageBytes; }
  MBT_DEVICE SharedAddress values(int stage) const { return base + kValues + stage * kStageBytes; }
};

struct ForwardRings {
  Ring keys, values;
  uint32_t queries = 0;  // phase
};

}  // namespace mbt_fast::cuda
