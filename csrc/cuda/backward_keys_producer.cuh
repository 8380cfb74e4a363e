// Backward, second launch: its shared memory, and who fills it.
#pragma once

#include "backward_tiles.cuh"

namespace mbt_fast::cuda {

template <int kDim>
struct KeysMemory {
  static constexpr int kQueryRows = kQueryTileOf<kDim>;
  static constexpr uint32_t kKeyBytes = kTileBytes<kDim, kBackwardTile>;
  static constexpr uint32_t kStageBytes = kTileBytes<kDim, kQueryRows>;
  static constexpr uint32_t kStateBytes = 3 * kQueryRows * 4;
  static constexpr uint32_t kDsBytes = kBackwardTile * kQueryRows * 2;
  static constexpr uint32_t kDqBytes = kGroupRows * 64 * 4;  // of a group
  static constexpr uint32_t kKeys = 1024;
  static constexpr uint32_t kValues = kKeys + kKeyBytes;
  static constexpr uint32_t kQueries = kValues + kKeyBytes;
  static constexpr uint32_t kDouts = kQueries + kStages * kStageBytes;
  static constexpr uint32_t kDs = kDouts + kStages * kStageBytes;
  static constexpr uint32_t kDq = kDs + 2 * kDsBytes;
  static constexpr uint32_t kState = kDq + kConsumers * kDqBytes;
  static constexpr uint32_t kBytes = kState + kStages * kStateBytes;
  static_assert(kBytes <= kSharedMemory);

  SharedAddress base;

  MBT_DEVICE SharedAddress keys_full() const { return base; }
  MBT_DEVICE SharedAddress keys_empty() const { return base + 8; }
  MBT_DEVICE SharedAddress values_full() const { return base + 16; }
  MBT_DEVICE SharedAddress values_empty() const { return base + 24; }
  MBT_DEVICE SharedAddress queries_full(int stage) const { return base + 32 + 8 * stage; }
  MBT_DEVICE SharedAddress queries_empty(int stage) const { return base + 48 + 8 * stage; }
  MBT_DEVICE SharedAddress douts_full(int stage) const { return base + 64 + 8 * stage; }
  MBT_DEVICE SharedAddress douts_empty(int stage) const { return base + 80 + 8 * stage; }
  MBT_DEVICE SharedAddress keys() const { return base + kKeys; }
  MBT_DEVICE SharedAddress values() const { return base + kValues; }
  MBT_DEVICE SharedAddress queries(int stage) const {
    return base + kQueries + stage * kStageBytes;
  }
  MBT_DEVICE SharedAddress douts(int stage) const { return base + kDouts + stage * kStageBytes; }
  MBT_DEVICE SharedAddress state(int stage) const { return base + kState + stage * kStateBytes; }
  MBT_DEVICE SharedAddress ds(int number) const { return base + kDs + number % 2 * kDsBytes; }
  MBT_DEVICE SharedAddress dq(int group) const { return base + kDq + group * kDqBytes; }

  MBT_DEVICE void init_barriers() const {
    for (const SharedAddress full : {keys_full(), values_full()}) {
      barrier_init(full, 1);
      barrier_init(full + 8, kConsumerWarps);
    }
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(queries_full(stage), 1);
      barrier_init(queries_empty(stage), kConsumerWarps);
      barrier_init(douts_full(stage), 1);
      barrier_init(douts_empty(stage), kConsumerWarps);
    }
    fence_barrier_init();
  }
};

// How far a thread has come; queries and dout of a step share their stage and their phase.
struct KeysProgress {
  uint32_t steps = 0, items = 0;

  MBT_DEVICE uint32_t stage() const { return steps % kStages; }
  MBT_DEVICE uint32_t phase() const { return steps / kStages % 2; }
  MBT_DEVICE uint32_t item_phase() const { return items % 2; }
};

template <int kDim>
MBT_DEVICE void load_keys(const KeysMemory<kDim>& memory, const BackwardItem& item,
                          uint32_t phase) {
  constexpr uint32_t kBytes = KeysMemory<kDim>::kKeyBytes;
  barrier_wait(memory.keys_empty(), phase ^ 1);
  barrier_arrive_expect(memory.keys_full(), kBytes);
  load_boxes<kDim, kBackwardTile>(memory.keys(), item.stream.qkv, memory.keys_full(),
                                  item.first_row, item.head, 1, item.example);
  barrier_wait(memory.values_empty(), phase ^ 1);
  barrier_arrive_expect(memory.values_full(), kBytes);
  load_boxes<kDim, kBackwardTile>(memory.values(), item.stream.qkv, memory.values_full(),
                                  item.first_row, item.head, 2, item.example);
}

template <int kDim>
MBT_DEVICE void produce_keys_item(const BackwardParameters& parameters,
                                  const KeysMemory<kDim>& memory, const BackwardItem& item,
                                  KeysProgress& progress) {
  using Memory = KeysMemory<kDim>;
  const KeyTiles<Memory::kQueryRows> steps(item.rows, item.is_needed());
  for (int number = 0; number < steps.count; ++number) {
    const int row = steps.first_row(number), stage = progress.stage();
    const SharedAddress query_full = memory.queries_full(stage);
    const SharedAddress dout_full = memory.douts_full(stage);
    barrier_wait(memory.queries_empty(stage), progress.phase() ^ 1);
    barrier_arrive_expect(query_full, Memory::kStageBytes + Memory::kStateBytes);
    load_boxes<kDim, Memory::kQueryRows>(memory.queries(stage), item.stream.qkv, query_full, row,
                                         item.head, 0, item.example);
    bulk_load(memory.state(stage), rows_state<kDim>(parameters, item, row), Memory::kStateBytes,
              query_full);
    if (number == 0) load_keys(memory, item, progress.item_phase());
    barrier_wait(memory.douts_empty(stage), progress.phase() ^ 1);
    barrier_arrive_expect(dout_full, Memory::kStageBytes);
    load_boxes<kDim, Memory::kQueryRows>(memory.douts(stage), item.stream.douts, dout_full, row,
                                         item.head, 0, item.example);
    ++progress.steps;
  }
  if (steps.count > 0) ++progress.items;
}

}  // namespace mbt_fast::cuda
