// Producer and consumers, as the forward and both walks of the backward have them.
//
// A block has three warp groups. Thread 0 of the first, the producer, asks the copy engine for tiles;
// the other two, the consumers, own 64 rows each. Every buffer has two mbarriers: a full one that the
// copy engine completes, and an empty one at which each of the eight consumer warps arrives.
#pragma once

#include "instructions.cuh"

namespace mbt_fast::cuda {

constexpr int kPipelineThreads = 3 * kWarpGroup;
constexpr int kConsumers = 2;  // warp groups
constexpr int kConsumerThreads = kConsumers * kWarpGroup;
constexpr int kConsumerWarps = kConsumerThreads / kWarp;
constexpr int kGroupRows = 64;
constexpr int kStages = 2;  // of what comes tile by tile

// Place in a ring of buffers. A fresh barrier counts as having completed phase 1.
template <int kCount>
struct Ring {
  int stage = 0;
  uint32_t phase = 0;

  MBT_DEVICE void advance() {
    if (++stage == kCount) {
      stage = 0;
      phase ^= 1;
    }
  }
  MBT_DEVICE Ring next() const {
    Ring ring = *this;
    ring.advance();
    return ring;
  }
};

// The barriers of a block whose rows, queries and what belongs to them, walk along keys and values:
// the rows come once for each item, the others tile by tile. They lie at the start of shared memory.
template <int kRowStages>
struct WalkBarriers {
  SharedAddress base;

  MBT_DEVICE SharedAddress rows_full(int stage) const { return base + 8 * stage; }
  MBT_DEVICE SharedAddress rows_empty(int stage) const { return base + 16 + 8 * stage; }
  MBT_DEVICE SharedAddress keys_full(int stage) const { return base + 32 + 8 * stage; }
  MBT_DEVICE SharedAddress keys_empty(int stage) const { return base + 48 + 8 * stage; }
  MBT_DEVICE SharedAddress values_full(int stage) const { return base + 64 + 8 * stage; }
  MBT_DEVICE SharedAddress values_empty(int stage) const { return base + 80 + 8 * stage; }

  MBT_DEVICE void init_barriers() const {
    require_aligned(base);
    for (int stage = 0; stage < kRowStages; ++stage) {
      barrier_init(rows_full(stage), 1);
      barrier_init(rows_empty(stage), kConsumerWarps);
    }
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(keys_full(stage), 1);
      barrier_init(keys_empty(stage), kConsumerWarps);
      barrier_init(values_full(stage), 1);
      barrier_init(values_empty(stage), kConsumerWarps);
    }
    fence_barrier_init();
  }
};

// A box of `rows` rows of all channels: panel after panel.
template <int kDim>
MBT_DEVICE void load_rows(SharedAddress to, const TensorMap& map, SharedAddress full, int rows,
                          int first, int head, int which, int example) {
  for (int panel = 0; panel < kDim / static_cast<int>(kPanelColumns); ++panel)
    tensor_load(to + panel * rows * kPanelRowBytes, map, full, panel * kPanelColumns, first, head,
                which, example);
}

// One of the eight arrivals that make a buffer empty.
MBT_DEVICE void release(SharedAddress empty) {
  sync_warp();
  if (thread_index() % kWarp == 0) barrier_arrive(empty);
}

}  // namespace mbt_fast::cuda
