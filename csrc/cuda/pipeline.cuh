// Producer and consumers, as the forward and both walks of the backward have them.
//
// A block has three warp groups. Thread 0 of the first, the producer, asks the copy engine for tiles;
// the other two, the consumers, own 64 rows each. Every buffer has two mbarriers: a full one that the
// copy engine completes, and an empty one at which each of the eight consumer warps arrives.
#pragma once

#include "hopper.cuh"

namespace mbt_fast::cuda {

constexpr int kPipelineThreads = 3 * kWarpGroup;
constexpr int kConsumers = 2;  // warp groups
constexpr int kConsumerThreads = kConsumers * kWarpGroup;
constexpr int kConsumerWarps = kConsumerThreads / kWarp;
constexpr int kGroupRows = 64;
constexpr int kStages = 2;  // of what comes tile by tile

// Place in a ring of buffers. A fresh barrier counts as having completed phase 1.
struct Ring {
  int stage = 0;
  uint32_t phase = 0;

  MBT_DEVICE void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
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
