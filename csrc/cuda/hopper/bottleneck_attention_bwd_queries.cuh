// Backward, last launch where results must repeat: dq of 128 queries, which walk along the keys.
//
// Warp groups and copies are those of the forward: a group owns 64 queries, dS is an operand as it
// lies in registers, and no sum leaves its block.
#pragma once

#include "bottleneck_attention_bwd.cuh"

namespace mbt_fast::cuda {

template <int kDim>
struct QueriesMemory : WalkBarriers<1> {
  static constexpr uint32_t kBytesOfTile = kTileBytes<kDim, kBackwardTile>;
  static constexpr uint32_t kQueries = 1024;
  static constexpr uint32_t kDouts = kQueries + kBytesOfTile;
  static constexpr uint32_t kKeys = kDouts + kBytesOfTile;
  static constexpr uint32_t kValues = kKeys + kStages * kBytesOfTile;
  static constexpr uint32_t kBytes = kValues + kStages * kBytesOfTile;
  static_assert(kBytes <= kSharedMemory);

  MBT_DEVICE SharedAddress queries() const { return base + kQueries; }
  MBT_DEVICE SharedAddress douts() const { return base + kDouts; }
  MBT_DEVICE SharedAddress keys(int stage) const { return base + kKeys + stage * kBytesOfTile; }
  MBT_DEVICE SharedAddress values(int stage) const { return base + kValues + stage * kBytesOfTile; }
};

struct QueriesRings {
  Ring<1> rows;  // of queries and douts
  Ring<kStages> keys, values;
};

template <int kDim>
MBT_DEVICE void load_queries(const QueriesMemory<kDim>& memory, const BackwardItem& item,
                             const Ring<1>& ring) {
  const SharedAddress full = memory.rows_full(ring.stage);
  barrier_wait(memory.rows_empty(ring.stage), ring.phase ^ 1);
  barrier_arrive_expect(full, 2 * QueriesMemory<kDim>::kBytesOfTile);
  load_boxes<kDim, kBackwardTile>(memory.queries(), item.stream.qkv, full, item.first_row,
                                  item.head, 0, item.example);
  load_boxes<kDim, kBackwardTile>(memory.douts(), item.stream.douts, full, item.first_row,
                                  item.head, 0, item.example);
}

template <int kDim>
MBT_DEVICE void produce_queries_item(const QueriesMemory<kDim>& memory, const BackwardItem& item,
                                     QueriesRings& rings) {
  constexpr uint32_t kBytes = QueriesMemory<kDim>::kBytesOfTile;
  const KeyTiles<kBackwardTile> tiles(item.rows, item.is_needed());
  for (int number = 0; number < tiles.count; ++number) {
    const int row = tiles.first_row(number), key = rings.keys.stage, value = rings.values.stage;
    barrier_wait(memory.keys_empty(key), rings.keys.phase ^ 1);
    barrier_arrive_expect(memory.keys_full(key), kBytes);
    load_boxes<kDim, kBackwardTile>(memory.keys(key), item.stream.qkv, memory.keys_full(key), row,
                                    item.head, 1, item.example);
    if (number == 0) load_queries(memory, item, rings.rows);
    barrier_wait(memory.values_empty(value), rings.values.phase ^ 1);
    barrier_arrive_expect(memory.values_full(value), kBytes);
    load_boxes<kDim, kBackwardTile>(memory.values(value), item.stream.qkv,
                                    memory.values_full(value), row, item.head, 2, item.example);
    rings.keys.advance();
    rings.values.advance();
  }
  if (tiles.count > 0) rings.rows.advance();
}

// A consumer's state while it walks along the keys.
template <class Element, int kDim>
struct QueriesConsumer {
  using Memory = QueriesMemory<kDim>;
  static constexpr int kKeys = kBackwardTile;

  const BackwardParameters& parameters;
  const Memory& memory;
  const BackwardItem& item;
  QueriesRings& rings;
  int group;  // 0 or 1
  KeyTiles<kKeys> tiles;
  float shift[2], log2_sum[2], delta[2];  // of this thread's two queries
  float dq[kDim / 2] = {};                // the result

  MBT_DEVICE QueriesConsumer(const BackwardParameters& parameters, const Memory& memory,
                             const BackwardItem& item, QueriesRings& rings, int group,
                             const KeyTiles<kKeys>& tiles)
      : parameters(parameters),
        memory(memory),
        item(item),
        rings(rings),
        group(group),
        tiles(tiles) {
    constexpr int kRows = kQueryTileOf<kDim>;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = item.first_row + fragment_row(group, half);
      const float* state = rows_state<kDim>(parameters, item, row / kRows * kRows) + row % kRows;
      shift[half] = state[0];
      log2_sum[half] = state[kRows];
      delta[half] = state[2 * kRows];
    }
  }

  // d = queries keys^T, or dout values^T, asynchronously.
  MBT_DEVICE void start_product(float (&d)[kKeys / 2], SharedAddress queries, SharedAddress keys) {
    keep_in_place(d);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDim / static_cast<int>(kStep); ++step)
      wgmma<Element, Major::kK, Major::kK>(
          d, operand<Major::kK>(queries + group * kGroupRows * kPanelRowBytes, kBackwardTile, step),
          operand<Major::kK>(keys, kKeys, step), step > 0);
    wgmma_commit();
  }
  MBT_DEVICE void start_scores(int number) {
    const SharedAddress keys = memory.keys(rings.keys.stage);
    barrier_wait(memory.keys_full(rings.keys.stage), rings.keys.phase);
    mend_tile<kDim>(keys, tiles, tiles.first_row(number));
    start_product(scores, memory.queries(), keys);
  }
  // dq += ds keys, asynchronously.
  MBT_DEVICE void start_dq(int stage) {
    keep_in_place(dq);
    keep_in_place(ds_pairs);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kKeys / static_cast<int>(kStep); ++step)
      wgmma<Element, Major::kMN>(dq, ds_pairs + 4 * step,
                                 operand<Major::kMN>(memory.keys(stage), kKeys, step), true);
    wgmma_commit();
  }
  MBT_DEVICE void finish_dq(int stage) {
    wgmma_wait<0>();
    keep_in_place(dq);
    keep_in_place(ds_pairs);
    release(memory.keys_empty(stage));
  }

  // One half of the keys.
  template <int kPart>
  MBT_DEVICE void to_probabilities(int number) {
    constexpr int kCount = kKeys / 4;
    const float scale = parameters.log2_scale;
#pragma unroll
    for (int i = kPart * kCount; i < (kPart + 1) * kCount; ++i)
      scores[i] = exp2_approx(fmaf(scores[i], scale, -shift[i / 2 % 2]) - log2_sum[i / 2 % 2]);
    if (!tiles.needs_mask(tiles.first_row(number))) return;
    const int first = tiles.first_row(number) + thread_index() % 4 * 2;
#pragma unroll
    for (int i = kPart * kCount; i < (kPart + 1) * kCount; ++i)
      if (!item.rows.is_valid(first + i / 4 * 8 + i % 2)) scores[i] = 0;
  }

  // dp = dout values^T, asynchronously.
  MBT_DEVICE void start_dp(int number) {
    const int stage = rings.values.stage;
    barrier_wait(memory.values_full(stage), rings.values.phase);
    mend_tile<kDim>(memory.values(stage), tiles, tiles.first_row(number));
    start_product(dp, memory.douts(), memory.values(stage));
  }
  template <int kPending>
  MBT_DEVICE void wait_for_scores() {
    wgmma_wait<kPending>();
    keep_in_place(scores);
  }
  // From p and dp to ds as an operand.
  MBT_DEVICE void differentiate() {
    const int stage = rings.values.stage;
    const float choice = item.choice();
    wgmma_wait<0>();
    keep_in_place(dp);
    release(memory.values_empty(stage));
    rings.values.advance();
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      const int x = 2 * i, y = x + 1;
      ds_pairs[i] = pack<Element>(scores[x] * fmaf(dp[x], choice, -delta[i % 2]),
                                  scores[y] * fmaf(dp[y], choice, -delta[i % 2]));
    }
  }

  // The whole walk. While the tensor cores are at dq of a tile, one half of the next scores become
  // probabilities, and the other half while they are at the next dp.
  MBT_DEVICE void walk() {
    start_scores(0);
    start_dp(0);
    wait_for_scores<1>();
    to_probabilities<0>(0);
    to_probabilities<1>(0);
    differentiate();
    for (int number = 1; number < tiles.count; ++number) {
      const int before = rings.keys.stage;
      rings.keys.advance();
      start_scores(number);
      start_dq(before);
      wait_for_scores<1>();
      to_probabilities<0>(number);
      finish_dq(before);
      start_dp(number);
      to_probabilities<1>(number);
      differentiate();
    }
    const int last = rings.keys.stage;
    rings.keys.advance();
    start_dq(last);
    finish_dq(last);
  }

 private:
  float scores[kKeys / 2], dp[kKeys / 2];
  uint32_t ds_pairs[kKeys / 4];
};

template <class Element, int kDim>
MBT_DEVICE void consume_queries_item(const BackwardParameters& parameters,
                                     const QueriesMemory<kDim>& memory, const BackwardItem& item,
                                     QueriesRings& rings, int group) {
  const KeyTiles<kBackwardTile> tiles(item.rows, item.is_needed());
  if (tiles.count == 0) return store_no_rows<kDim>(parameters, item, 0);
  barrier_wait(memory.rows_full(rings.rows.stage), rings.rows.phase);
  mend_dout<kDim>(memory.douts(), KeyTiles<kBackwardTile>(item.rows, true), parameters, item,
                  item.first_row);
  QueriesConsumer<Element, kDim> consumer(parameters, memory, item, rings, group, tiles);
  consumer.walk();
  // All of the group have multiplied by its queries: they are room for results.
  named_barrier_sync(1 + group, kWarpGroup);
  store_rows<Element, kDim>(parameters, item, memory.queries(), group, 0, consumer.dq,
                            parameters.scale);
  fence_async_proxy();  // before the copy engine brings the next queries
  release(memory.rows_empty(rings.rows.stage));
  rings.rows.advance();
}

template <class Element, int kDim>
MBT_KERNEL(kPipelineThreads)
bottleneck_attention_bwd_queries_kernel(MBT_PARAMETERS BackwardParameters parameters) {
#if MBT_HAS_HOPPER
  const QueriesMemory<kDim> memory = {shared_memory()};
  if (thread_index() == 0) memory.init_barriers();
  sync_threads();
  const int warp_group = uniform(thread_index() / kWarpGroup);
  QueriesRings rings;
  if (warp_group == 0) {
    give_registers<24>();
    if (thread_index() == 0)
      for (int number = block_index(); number < parameters.items; number += grid_size())
        produce_queries_item(memory, backward_item(parameters, number), rings);
  } else {
    take_registers<240>();
    for (int number = block_index(); number < parameters.items; number += grid_size())
      consume_queries_item<Element>(parameters, memory, backward_item(parameters, number), rings,
                                    warp_group - 1);
  }
#endif
}

}  // namespace mbt_fast::cuda
