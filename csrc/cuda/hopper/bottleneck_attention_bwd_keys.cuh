// Backward, second launch: dk and dv of 128 keys, which walk along the queries.
//
// A block has three warp groups, as in the forward. Thread 0 of the first, the producer, asks the
// copy engine for keys and values once, and for queries and dout step by step; the other two own 64
// keys each. All but dq is transposed, so that P and dS are operands as they lie in registers::
//
//              queries                          channels
//            +---------+
//   64 keys  | S', dP' |  P', dS'    dV += P' dO    dK += dS' Q
//            +---------+
//   64 keys  | S', dP' |             dQ  = dS K  over all 128 keys, by way of shared memory
//            +---------+
//
// Each group computes one half of dQ and adds it to global memory by the copy engine: the half of
// the queries where a step has 128, or else that of the channels.
#pragma once

#include "bottleneck_attention_bwd.cuh"

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
    require_aligned(base);
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

// A consumer's state while it walks along the queries.
template <class Element, int kDim, bool kAddsDq>
struct KeysConsumer {
  using Memory = KeysMemory<kDim>;
  static constexpr int kQueryRows = Memory::kQueryRows;
  static constexpr uint32_t kGroupBytes = kGroupRows * kPanelRowBytes;
  static constexpr uint32_t kPanelBytes = kBackwardTile * kPanelRowBytes;

  const BackwardParameters& parameters;
  const Memory& memory;
  const BackwardItem& item;
  KeysProgress& progress;
  int group;  // 0 or 1
  KeyTiles<kQueryRows> steps;
  float* sums;       // of dq of this head
  bool is_whole;     // or some of the keys do not count
  bool is_valid[2];  // this thread's two keys

  MBT_DEVICE KeysConsumer(const BackwardParameters& parameters, const Memory& memory,
                          const BackwardItem& item, KeysProgress& progress, int group,
                          const KeyTiles<kQueryRows>& steps, const KeyTiles<kBackwardTile>& tiles)
      : parameters(parameters),
        memory(memory),
        item(item),
        progress(progress),
        group(group),
        steps(steps),
        sums(kAddsDq ? dq_sums<kDim>(parameters, item, 0) : nullptr),
        is_whole(!tiles.needs_mask(item.first_row)),
        is_valid{item.rows.is_valid(item.first_row + fragment_row(group, 0)),
                 item.rows.is_valid(item.first_row + fragment_row(group, 1))} {}

  // scores' = keys queries^T, asynchronously.
  MBT_DEVICE void start_scores(int number) {
    const SharedAddress queries = memory.queries(progress.stage());
    barrier_wait(memory.queries_full(progress.stage()), progress.phase());
    mend_tile<kDim>(queries, steps, steps.first_row(number));
    start_transposed(scores, memory.keys(), queries);
  }
  // dp' = values dout^T, asynchronously.
  MBT_DEVICE void start_dp(int number) {
    const SharedAddress douts = memory.douts(progress.stage());
    barrier_wait(memory.douts_full(progress.stage()), progress.phase());
    mend_dout<kDim>(douts, steps, parameters, item, steps.first_row(number));
    start_transposed(dp, memory.values(), douts);
  }
  MBT_DEVICE void start_transposed(float (&d)[kQueryRows / 2], SharedAddress keys,
                                   SharedAddress queries) {
    const SharedAddress own = keys + computed_here(group) * kGroupBytes;
    keep_in_place(d);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDim / static_cast<int>(kStep); ++step)
      wgmma<Element, Major::kK, Major::kK>(d, operand<Major::kK>(own, kBackwardTile, step),
                                           operand<Major::kK>(queries, kQueryRows, step), step > 0);
    wgmma_commit();
  }
  // d += p' dout, or ds' queries, asynchronously.
  MBT_DEVICE void start_sum(float (&d)[kDim / 2], uint32_t (&weights)[kQueryRows / 4],
                            SharedAddress rows) {
    keep_in_place(d);
    keep_in_place(weights);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kQueryRows / static_cast<int>(kStep); ++step)
      wgmma<Element, Major::kMN>(d, weights + 4 * step, operand<Major::kMN>(rows, kQueryRows, step),
                                 true);
    wgmma_commit();
  }
  // This group's half of dq = ds keys, over the keys of both groups; asynchronously.
  MBT_DEVICE void start_dq(SharedAddress ds) {
    const uint32_t half = computed_here(group) * kPanelBytes;
    const SharedAddress queries = ds + (kDim > 64 ? 0 : half);
    const SharedAddress channels = memory.keys() + (kDim > 64 ? half : 0);
    keep_in_place(dq);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kBackwardTile / static_cast<int>(kStep); ++step)
      wgmma<Element, Major::kMN, Major::kMN>(dq, operand<Major::kMN>(queries, kBackwardTile, step),
                                             operand<Major::kMN>(channels, kBackwardTile, step),
                                             step > 0);
    wgmma_commit();
  }

  // One half of the queries.
  template <int kPart>
  MBT_DEVICE void to_probabilities() {
    constexpr int kChunks = kQueryRows / 16;
    const float scale = parameters.log2_scale;
    const SharedAddress own = memory.state(progress.stage()) + thread_index() % 4 * 8;
#pragma unroll
    for (int chunk = kPart * kChunks; chunk < (kPart + 1) * kChunks; ++chunk) {
      const Pair shift = load_shared_pair(own + 32 * chunk);
      const Pair log2_sum = load_shared_pair(own + 32 * chunk + 4 * kQueryRows);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& x = scores[4 * chunk + 2 * half];
        float& y = scores[4 * chunk + 2 * half + 1];
        x = exp2_approx(fmaf(x, scale, -shift.x) - log2_sum.x);
        y = exp2_approx(fmaf(y, scale, -shift.y) - log2_sum.y);
      }
    }
    if (is_whole) return;
#pragma unroll
    for (int i = kPart * 4 * kChunks; i < (kPart + 1) * 4 * kChunks; ++i)
      if (!is_valid[i / 2 % 2]) scores[i] = 0;
  }

  // p' and ds' as operands.
  MBT_DEVICE void to_operands() {
    const float choice = item.choice();
    const SharedAddress own =
        memory.state(progress.stage()) + 8 * kQueryRows + thread_index() % 4 * 8;
#pragma unroll
    for (int chunk = 0; chunk < kQueryRows / 8; ++chunk) {
      const Pair delta = load_shared_pair(own + 32 * chunk);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int x = 4 * chunk + 2 * half, y = x + 1;
        p_pairs[x / 2] = pack<Element>(scores[x], scores[y]);
        ds_pairs[x / 2] = pack<Element>(scores[x] * fmaf(dp[x], choice, -delta.x),
                                        scores[y] * fmaf(dp[y], choice, -delta.y));
      }
    }
  }

  // ds' where both groups find it: rows are keys, panels are of 64 queries.
  MBT_DEVICE void share_ds(SharedAddress ds) {
    const int thread = computed_here(thread_index()) % kWarpGroup, lane = thread % kWarp;
    const int row = kGroupRows * group + thread / kWarp * 16 + lane % 16;
    const SharedAddress first = ds + swizzled(row, lane / 16);
#pragma unroll
    for (int pair = 0; pair < kQueryRows / 16; ++pair)  // of chunks, whose numbers are swizzled by xor
      store_matrices((first ^ pair % 4 * 32) + pair / 4 * kPanelBytes, ds_pairs + 4 * pair);
    if (is_first_of_group()) bulk_wait_read<0>();  // publish says to the group that dq() is free
    publish(kDsShared);
  }

  // Adds this group's half of dq to the sums, in the order of registers.
  MBT_DEVICE void add_dq(int number) {
    const int lane = computed_here(thread_index()) % kWarpGroup;
    const SharedAddress from = memory.dq(group);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      store_shared(from + (i * kWarpGroup + lane) * 16,
                   Floats{dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]});
    fence_async_proxy();
    named_barrier_sync(1 + group, kWarpGroup);
    const int first = steps.first_row(number) + (kDim > 64 ? 0 : group * kGroupRows);
    if (!is_first_of_group() || first >= item.rows.count) return;
    float* to = sums + int64_t{kDim} * first + (kDim > 64 ? group * kGroupRows * 64 : 0);
    bulk_add(to, from, Memory::kDqBytes);
    bulk_commit();
  }

  MBT_DEVICE bool is_first_of_group() const { return thread_index() % kWarpGroup == 0; }

  template <int kPending>
  MBT_DEVICE void wait_for_scores() {
    wgmma_wait<kPending>();
    keep_in_place(scores);
  }

  // From p and dp of a step to p' and ds' as operands; adds to dv.
  MBT_DEVICE void differentiate() {
    const uint32_t stage = progress.stage();
    wgmma_wait<0>();
    keep_in_place(dp);
    to_operands();
    start_sum(dv, p_pairs, memory.douts(stage));
    if constexpr (kAddsDq) share_ds(memory.ds(stage));
    wgmma_wait<0>();
    keep_in_place(dv);
    keep_in_place(p_pairs);
    release(memory.douts_empty(stage));
    ++progress.steps;
  }

  // dq and dk of the step before, asynchronously.
  MBT_DEVICE void start_results() {
    const uint32_t stage = before();
    if constexpr (kAddsDq) start_dq(memory.ds(stage));
    start_sum(dk, ds_pairs, memory.queries(stage));
  }
  template <int kPending>
  MBT_DEVICE void finish_dq(int number) {
    if constexpr (!kAddsDq) return;
    wgmma_wait<kPending>();
    keep_in_place(dq);
    add_dq(number);
  }
  template <int kPending>
  MBT_DEVICE void finish_dk() {
    wgmma_wait<kPending>();
    keep_in_place(dk);
    keep_in_place(ds_pairs);
    release(memory.queries_empty(before()));
  }

  // The whole walk. While the tensor cores are at dq and dk of a step, one half of the next scores
  // become probabilities, and the other half while they are at the next dp, which takes the registers
  // of dq and of ds. With 128 channels these do not suffice for dq, dk, dv and scores: then all scores
  // become probabilities beside dp.
  MBT_DEVICE void walk() {
    constexpr bool kOverlaps = kDim == 64 || !kAddsDq;
    start_scores(0);
    start_dp(0);
    wait_for_scores<1>();
    to_probabilities<0>();
    to_probabilities<1>();
    differentiate();
    for (int number = 1; number < steps.count; ++number) {
      if constexpr (kOverlaps) {
        start_scores(number);
        start_results();
        wait_for_scores<kAddsDq ? 2 : 1>();
        to_probabilities<0>();
        finish_dq<1>(number - 1);
        finish_dk<0>();
        start_dp(number);
        to_probabilities<1>();
      } else {
        start_results();
        finish_dq<1>(number - 1);
        finish_dk<0>();
        start_scores(number);
        start_dp(number);
        wait_for_scores<1>();
        to_probabilities<0>();
        to_probabilities<1>();
      }
      differentiate();
    }
    start_results();
    finish_dq<1>(steps.count - 1);
    finish_dk<0>();
  }
  // The stage of the step before.
  MBT_DEVICE uint32_t before() const { return (progress.steps - 1) % kStages; }

  float dk[kDim / 2] = {}, dv[kDim / 2] = {};  // results

 private:
  float scores[kQueryRows / 2], dp[kQueryRows / 2], dq[32];
  uint32_t p_pairs[kQueryRows / 4], ds_pairs[kQueryRows / 4];
};

template <class Element, int kDim, bool kAddsDq>
MBT_DEVICE void consume_keys_item(const BackwardParameters& parameters,
                                  const KeysMemory<kDim>& memory, const BackwardItem& item,
                                  KeysProgress& progress, int group) {
  using Consumer = KeysConsumer<Element, kDim, kAddsDq>;
  const KeyTiles<Consumer::kQueryRows> steps(item.rows, item.is_needed());
  if (steps.count == 0) {
    store_no_rows<kDim>(parameters, item, 1);
    store_no_rows<kDim>(parameters, item, 2);
    return;
  }
  barrier_wait(memory.keys_full(), progress.item_phase());
  barrier_wait(memory.values_full(), progress.item_phase());
  const KeyTiles<kBackwardTile> tiles(item.rows, true);
  mend_tile<kDim>(memory.keys(), tiles, item.first_row);
  mend_tile<kDim>(memory.values(), tiles, item.first_row);
  ++progress.items;
  Consumer consumer(parameters, memory, item, progress, group, steps, tiles);
  consumer.walk();
  release(memory.keys_empty());
  // All of the group have multiplied by its values: they are room for results.
  named_barrier_sync(1 + group, kWarpGroup);
  const BackwardItem again = find_again(parameters, item);
  store_rows<Element, kDim>(parameters, again, memory.values(), group, 1, consumer.dk,
                            parameters.scale);
  store_rows<Element, kDim>(parameters, again, memory.values(), group, 2, consumer.dv, 1.0f);
  fence_async_proxy();  // before the copy engine brings the next values
  release(memory.values_empty());
}

template <class Element, int kDim, bool kAddsDq>
MBT_KERNEL(kPipelineThreads)
bottleneck_attention_bwd_keys_kernel(MBT_PARAMETERS BackwardParameters parameters) {
#if MBT_HAS_HOPPER
  const KeysMemory<kDim> memory = {shared_memory()};
  if (thread_index() == 0) memory.init_barriers();
  sync_threads();
  const int warp_group = uniform(thread_index() / kWarpGroup);
  KeysProgress progress;
  if (warp_group == 0) {
    give_registers<24>();
    if (thread_index() == 0)
      for (int number = block_index(); number < parameters.items; number += grid_size())
        produce_keys_item(parameters, memory, backward_item(parameters, number), progress);
  } else {
    take_registers<240>();
    for (int number = block_index(); number < parameters.items; number += grid_size())
      consume_keys_item<Element, kDim, kAddsDq>(
          parameters, memory, backward_item(parameters, number), progress, warp_group - 1);
    bulk_wait<0>();
  }
#endif
}

}  // namespace mbt_fast::cuda
