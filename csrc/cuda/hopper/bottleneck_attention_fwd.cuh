// Forward of bottleneck attention: all streams in one persistent launch.
//
// A block has three warp groups. Thread 0 of the first, the producer, asks the copy engine for
// queries, keys and values; the other two own 64 query rows each. ../README.md has the pipeline, the
// map of shared memory and the protocol of the barriers. The order here: what a block works on, what
// it stores, the producer, the consumers, the kernel.
#pragma once

#include <math.h>

#include "../bottleneck_attention.hpp"
#include "items.cuh"
#include "launch.cuh"
#include "pipeline.cuh"
#include "softmax.cuh"
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
  int shift;                // of blocks, between their items
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

// With two buffers the queries of the next item come while results of the present one are stored.
template <int kDim>
constexpr int kQueryStages = kDim > 64 ? 1 : 2;

// Shared memory.
template <int kDim>
struct ForwardMemory : WalkBarriers<kQueryStages<kDim>> {
  static constexpr int kMaxTile = KeyTileSizes<kDim>::kLarge;
  static constexpr int kPanels = kDim / kPanelColumns;
  static constexpr uint32_t kGroupBytes = kGroupRows * kDim * 2;
  static constexpr uint32_t kStageBytes = kMaxTile * kDim * 2;
  static constexpr uint32_t kQueries = 1024;
  static constexpr uint32_t kKeys = kQueries + kQueryStages<kDim> * kConsumers * kGroupBytes;
  static constexpr uint32_t kValues = kKeys + kStages * kStageBytes;
  static constexpr uint32_t kBytes = kValues + kStages * kStageBytes;
  static_assert(kBytes <= kSharedMemory);

  MBT_DEVICE SharedAddress queries(int stage, int group) const {
    return this->base + kQueries + (stage * kConsumers + group) * kGroupBytes;
  }
  MBT_DEVICE SharedAddress keys(int stage) const {
    return this->base + kKeys + stage * kStageBytes;
  }
  MBT_DEVICE SharedAddress values(int stage) const {
    return this->base + kValues + stage * kStageBytes;
  }
};

template <int kDim>
struct ForwardRings {
  Ring<kQueryStages<kDim>> queries;
  Ring<kStages> keys, values;
};

// Where a row's output goes: to `kept` for slots that are still to be shared.
template <int kDim>
MBT_DEVICE Words* out_row(const ForwardParameters& parameters, const ForwardItem& item, int row) {
  const ForwardStream& stream = item.stream;
  const bool is_kept = stream.kept && row >= item.rows.first_slot;
  const int rows = is_kept ? parameters.slots : stream.rows;
  const int64_t number = int64_t{item.example} * rows + row - (is_kept ? item.rows.first_slot : 0);
  void* to = is_kept ? stream.kept : stream.out;
  return static_cast<Words*>(to) + (number * parameters.heads + item.head) * (kDim / 8);
}

// The log-sum-exp of a row, and apart its two parts for the backward: at scores of 1e4 their sum
// in float32 has an error of 1e-3.
MBT_DEVICE void store_statistics(const ForwardParameters& parameters, const ForwardItem& item,
                                 int row, float shift, float log2_sum) {
  constexpr float kLn2 = 0.6931471805599453f;
  const ForwardStream& stream = item.stream;
  const int64_t heads = int64_t{parameters.batch} * parameters.heads;
  const int64_t at = (int64_t{item.example} * parameters.heads + item.head) * stream.rows + row;
  stream.lse[at] = (shift + log2_sum) * kLn2;
  stream.stats[at] = shift;
  stream.stats[heads * stream.rows + at] = log2_sum;
}

// Zeros for the rows of a group of which none is valid.
template <int kDim>
MBT_DEVICE void store_nothing(const ForwardParameters& parameters, const ForwardItem& item,
                              int first) {
  const int lane = computed_here(thread_index()) % kWarpGroup;
  for (int i = lane; i < kGroupRows * kDim / 8; i += kWarpGroup) {
    const int row = first + i / (kDim / 8);
    if (row < item.rows.count)
      out_row<kDim>(parameters, item, row)[i % (kDim / 8)] = Words{0, 0, 0, 0};
  }
  if (lane < kGroupRows && first + lane < item.rows.count)
    store_statistics(parameters, item, first + lane, -INFINITY, 0.0f);
}

// Through the shared memory of the group's queries, `rows`, so that whole rows are stored.
template <class Element, int kDim>
MBT_DEVICE void store_out(const ForwardParameters& parameters, SharedAddress rows,
                          const ForwardItem& item, int group, float (&out)[kDim / 2],
                          Softmax<kDim>& softmax) {
  const int thread = computed_here(thread_index());
  const int lane = thread % kWarp, warp = thread % kWarpGroup / kWarp;
  const int first = item.first_row + group * kGroupRows + 16 * warp;
  named_barrier_sync(1 + group, kWarpGroup);  // all have multiplied by the queries
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int own = 16 * warp + lane / 4 + 8 * half;
    const int row = item.first_row + group * kGroupRows + own;
    const bool is_valid = item.rows.is_valid(row);
    const float sum = softmax.whole_sum(half);
    const float factor = is_valid ? 1.0f / sum : 0.0f;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      const float x = out[4 * i + 2 * half] * factor, y = out[4 * i + 2 * half + 1] * factor;
      const SharedAddress panel = rows + i / 8 * kGroupRows * kPanelRowBytes;
      store_shared(panel + swizzled(own, i % 8) + lane % 4 * 4,
                   is_valid ? pack<Element>(x, y) : 0u);
    }
    if (lane % 4 == 0 && row < item.rows.count)
      store_statistics(parameters, item, row, is_valid ? softmax.shift[half] : -INFINITY,
                       is_valid ? log2f(sum) : 0.0f);
  }
  sync_warp();
  for (int i = lane; i < 16 * kDim / 8; i += kWarp) {
    const int row = i / (kDim / 8), chunk = i % (kDim / 8);
    const SharedAddress panel = rows + chunk / 8 * kGroupRows * kPanelRowBytes;
    if (first + row < item.rows.count)
      out_row<kDim>(parameters, item, first + row)[chunk] =
          load_shared_words(panel + swizzled(16 * warp + row, chunk % 8));
  }
  fence_async_proxy();  // before the copy engine brings the next queries
}

template <int kDim>
MBT_DEVICE void load_queries(const ForwardMemory<kDim>& memory, const ForwardItem& item,
                             const Ring<kQueryStages<kDim>>& ring) {
  const SharedAddress full = memory.rows_full(ring.stage);
  const int groups = item.first_row + kGroupRows < item.stream.rows ? 2 : 1;
  barrier_wait(memory.rows_empty(ring.stage), ring.phase ^ 1);
  barrier_arrive_expect(full, groups * ForwardMemory<kDim>::kGroupBytes);
  for (int group = 0; group < groups; ++group)
    load_rows<kDim>(memory.queries(ring.stage, group), item.stream.queries, full, kGroupRows,
                    item.first_row + group * kGroupRows, item.head, 0, item.example);
}

template <int kDim, int kTile>
MBT_DEVICE void produce_item(const ForwardMemory<kDim>& memory, const ForwardItem& item,
                             ForwardRings<kDim>& rings) {
  const ForwardStream& stream = item.stream;
  const KeyTiles<kTile> tiles(item.rows, item.is_needed());
  constexpr uint32_t kTileBytes = kTile * kDim * 2;
  for (int number = 0; number < tiles.count; ++number) {
    const int row = tiles.first_row(number), key = rings.keys.stage, value = rings.values.stage;
    barrier_wait(memory.keys_empty(key), rings.keys.phase ^ 1);
    barrier_arrive_expect(memory.keys_full(key), kTileBytes);
    load_rows<kDim>(memory.keys(key), stream.keys, memory.keys_full(key), kTile, row, item.head, 1,
                    item.example);
    if (number == 0) load_queries(memory, item, rings.queries);
    barrier_wait(memory.values_empty(value), rings.values.phase ^ 1);
    barrier_arrive_expect(memory.values_full(value), kTileBytes);
    load_rows<kDim>(memory.values(value), stream.keys, memory.values_full(value), kTile, row,
                    item.head, 2, item.example);
    rings.keys.advance();
    rings.values.advance();
  }
  if (tiles.count > 0) rings.queries.advance();
}

// A consumer's state while it walks along the keys.
template <class Element, int kDim, int kTile>
struct Consumer {
  const ForwardParameters& parameters;
  const ForwardMemory<kDim>& memory;
  const ForwardItem& item;
  ForwardRings<kDim>& rings;
  int group;  // 0 or 1
  KeyTiles<kTile> tiles;

  MBT_DEVICE SharedAddress queries() const { return memory.queries(rings.queries.stage, group); }

  // scores = queries keys^T, asynchronously.
  MBT_DEVICE void start_scores(float (&scores)[kTile / 2]) {
    barrier_wait(memory.keys_full(rings.keys.stage), rings.keys.phase);
    keep_in_place(scores);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDim / static_cast<int>(kStep); ++step)
      wgmma<Element, Major::kK, Major::kK>(
          scores, operand<Major::kK>(queries(), kGroupRows, step),
          operand<Major::kK>(memory.keys(rings.keys.stage), kTile, step), step > 0);
    wgmma_commit();
  }
  MBT_DEVICE void release_keys() {
    release(memory.keys_empty(rings.keys.stage));
    rings.keys.advance();
  }

  // Zeros for the values of padding; both groups share the work, and go on together.
  MBT_DEVICE void wait_for_values(const Ring<kStages>& ring, int number) {
    const SharedAddress values = memory.values(ring.stage);
    barrier_wait(memory.values_full(ring.stage), ring.phase);
    const int first = tiles.first_row(number);
    if (!tiles.has_holes(first)) return;
    const int begin = (tiles.first_hole(first) - first) * 8;  // in chunks of 16 bytes
    const int end = (tiles.end_of_holes(first) - first) * 8;
    for (int panel = 0; panel < ForwardMemory<kDim>::kPanels; ++panel)
      for (int chunk = begin + thread_index() - kWarpGroup; chunk < end;
           chunk += kConsumerThreads)
        store_shared(values + panel * kTile * kPanelRowBytes + chunk * 16, Words{0, 0, 0, 0});
    fence_async_proxy();
    named_barrier_sync(kValuesReady, kConsumerThreads);
  }

  // out += probabilities values, asynchronously.
  MBT_DEVICE void start_out(float (&out)[kDim / 2], uint32_t (&probabilities)[kTile / 4]) {
    keep_in_place(out);
    keep_in_place(probabilities);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kTile / static_cast<int>(kStep); ++step)
      wgmma<Element, Major::kMN>(
          out, probabilities + 4 * step,
          operand<Major::kMN>(memory.values(rings.values.stage), kTile, step), true);
    wgmma_commit();
  }
  MBT_DEVICE void release_values() {
    release(memory.values_empty(rings.values.stage));
    rings.values.advance();
  }

  // -inf for keys that do not count. Most streams have some behind their last row only: then only the
  // chunks of eight keys there are looked at, from the last one on.
  MBT_DEVICE void mask(float (&scores)[kTile / 2], int number) {
    if (parameters.negate) {
#pragma unroll
      for (int i = 0; i < kTile / 2; ++i) scores[i] = -scores[i];
    }
    const int first = tiles.first_row(number), own = first + thread_index() % 4 * 2;
    const int end = item.rows.count - first, own_end = item.rows.count - own;
#pragma unroll
    for (int chunk = kTile / 8 - 1; chunk >= 0; --chunk) {
      if (8 * chunk + 8 <= end) break;
#pragma unroll
      for (int i = 4 * chunk; i < 4 * chunk + 4; ++i)
        if (8 * chunk + i % 2 >= own_end) scores[i] = -INFINITY;
    }
    if (!tiles.has_holes(first)) return;
    const int hole = item.rows.length - own, end_of_hole = item.rows.first_slot - own;
#pragma unroll
    for (int i = 0; i < kTile / 2; ++i) {
      const int key = i / 4 * 8 + i % 2;
      if (key >= hole && key < end_of_hole) scores[i] = -INFINITY;
    }
  }

  // The whole walk. While the tensor cores are at `out += p v` of a tile, the scores of the next one
  // become probabilities. ptxas moves a wgmma_wait in front of arithmetic, and would move the second
  // one in front of softmax; but not across the branches of wait_for_values, which stand between.
  MBT_DEVICE void attend(float (&out)[kDim / 2], Softmax<kDim>& softmax) {
    float scores[kTile / 2];
    uint32_t probabilities[kTile / 4];
    start_scores(scores);
    wgmma_wait<0>();
    keep_in_place(scores);
    release_keys();
    mask(scores, 0);
    softmax.start(scores, parameters.scale);
    wait_for_values(rings.values, 0);
    to_probabilities<Element>(scores, probabilities);
    for (int number = 1; number < tiles.count; ++number) {
      start_scores(scores);
      start_out(out, probabilities);
      wgmma_wait<1>();
      keep_in_place(scores);
      release_keys();
      mask(scores, number);
      float factors[2];
      softmax.advance(scores, parameters.scale, factors);
      wait_for_values(rings.values.next(), number);
      wgmma_wait<0>();
      keep_in_place(out);
      keep_in_place(probabilities);
      release_values();
      rescale(out, factors);
      to_probabilities<Element>(scores, probabilities);
    }
    start_out(out, probabilities);
    wgmma_wait<0>();
    keep_in_place(out);
    release_values();
  }

  // A group without a valid row lets the other one go on.
  MBT_DEVICE void pass() {
    for (int number = 0; number < tiles.count; ++number) {
      barrier_wait(memory.keys_full(rings.keys.stage), rings.keys.phase);
      release_keys();
      wait_for_values(rings.values, number);
      release_values();
    }
  }

  static constexpr int kValuesReady = 3;  // named barriers; 1 and 2 are the groups' own
};

template <class Element, int kDim, int kTile>
MBT_DEVICE void consume_item(const ForwardParameters& parameters, const ForwardMemory<kDim>& memory,
                             const ForwardItem& item, ForwardRings<kDim>& rings, int group) {
  Consumer<Element, kDim, kTile> consumer = {
      parameters, memory, item, rings, group, KeyTiles<kTile>(item.rows, item.is_needed())};
  const int first = item.first_row + group * kGroupRows;
  const bool is_needed = item.rows.any_valid(first, kGroupRows);
  if (consumer.tiles.count > 0)
    barrier_wait(memory.rows_full(rings.queries.stage), rings.queries.phase);
  if (is_needed) {
    float out[kDim / 2] = {};  // or else ptxas 12.8 serialises all products (C7515)
    Softmax<kDim> softmax;
    consumer.attend(out, softmax);
    store_out<Element, kDim>(parameters, consumer.queries(), item, group, out, softmax);
  } else {
    consumer.pass();
    store_nothing<kDim>(parameters, item, first);
  }
  if (consumer.tiles.count > 0) {
    release(memory.rows_empty(rings.queries.stage));
    rings.queries.advance();
  }
}

template <int kDim>
MBT_DEVICE void produce(const ForwardParameters& parameters, const ForwardMemory<kDim>& memory) {
  for (int m = 0; m < parameters.stream_count; ++m) {
    prefetch_tensor_map(parameters.streams[m].queries);
    prefetch_tensor_map(parameters.streams[m].keys);
  }
  ForwardRings<kDim> rings;
  for_each_item(parameters.items, parameters.shift, [&](int number) {
    const ForwardItem item = forward_item(parameters, number);
    with_key_tile<kDim>(item.stream.key_tile, [&](auto tile) {
      produce_item<kDim, decltype(tile)::value>(memory, item, rings);
    });
  });
}

template <class Element, int kDim>
MBT_DEVICE void consume(const ForwardParameters& parameters, const ForwardMemory<kDim>& memory,
                        int group) {
  ForwardRings<kDim> rings;
  for_each_item(parameters.items, parameters.shift, [&](int number) {
    const ForwardItem item = forward_item(parameters, number);
    with_key_tile<kDim>(item.stream.key_tile, [&](auto tile) {
      consume_item<Element, kDim, decltype(tile)::value>(parameters, memory, item, rings, group);
    });
  });
}

template <class Element, int kDim>
MBT_KERNEL(kPipelineThreads)
bottleneck_attention_fwd_kernel(MBT_PARAMETERS ForwardParameters parameters) {
#if MBT_HAS_HOPPER
  const ForwardMemory<kDim> memory = {shared_memory()};
  if (thread_index() == 0) memory.init_barriers();
  sync_threads();
  const int warp_group = uniform(thread_index() / kWarpGroup);
  if (warp_group == 0) {
    give_registers<24>();
    if (thread_index() == 0) produce(parameters, memory);
  } else {
    take_registers<240>();
    consume<Element>(parameters, memory, warp_group - 1);
  }
#endif
}

}  // namespace mbt_fast::cuda
