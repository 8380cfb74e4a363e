// Backward, first launch: what the walks need of every row.
//
// kDim / 8 threads share a row of `out` and `dout`. Rows that do not count get an infinite sum.
#pragma once

#include "bottleneck_attention_bwd.cuh"
#include "bottleneck_attention_slots.cuh"

namespace mbt_fast::cuda {

constexpr int kDeltaThreads = 256;

MBT_DEVICE const Words* dout_row(const BackwardStream& stream, int example, int row, int head) {
  const int64_t at = example * stream.dout_batch + row * stream.dout_row + head * stream.dout_head;
  return static_cast<const Words*>(stream.dout) + at / 8;
}

// The mean over present streams of their gradients of a slot: 8 channels.
template <class Element>
MBT_DEVICE Words slot_gradient(const BackwardParameters& parameters, const BackwardItem& item,
                               int slot, int chunk) {
  float sums[8] = {};
  int present = 0;
  for (int m = 0; m < parameters.stream_count; ++m) {
    const BackwardStream& stream = parameters.streams[m];
    const Rows rows = rows_of(stream.rows, parameters.slots, stream.lengths, item.example);
    if (!rows.is_present) continue;
    add_words<Element>(sums,
                       dout_row(stream, item.example, rows.first_slot + slot, item.head)[chunk]);
    ++present;
  }
  return mean_words<Element>(sums, 1.0f / static_cast<float>(present));
}

template <class Element>
MBT_DEVICE float dot(const Words& a, const Words& b) {
  float left[8] = {}, right[8] = {}, sum = 0;
  add_words<Element>(left, a);
  add_words<Element>(right, b);
#pragma unroll
  for (int i = 0; i < 8; ++i) sum = fmaf(left[i], right[i], sum);
  return sum;
}

// This thread's share of rowsum(dout * out). Shared slots: of what they were before the update.
template <class Element, int kDim>
MBT_DEVICE float dout_times_out(const BackwardParameters& parameters, const BackwardItem& item,
                                int row, int chunk) {
  constexpr int kChunks = kDim / 8;
  const BackwardStream& stream = item.stream;
  const int slot = row - item.rows.first_slot;
  if (parameters.dslots && slot >= 0) {
    const Words gradient = slot_gradient<Element>(parameters, item, slot, chunk);
    dslots_row<kDim>(parameters, item, slot)[chunk] = gradient;  // all streams write the same
    const int64_t number = int64_t{item.example} * parameters.slots + slot;
    const auto* kept = static_cast<const Words*>(stream.kept);
    return dot<Element>(kept[(number * parameters.heads + item.head) * kChunks + chunk], gradient);
  }
  const int64_t number = int64_t{item.example} * stream.rows + row;
  const auto* out = static_cast<const Words*>(stream.out);
  return dot<Element>(out[(number * parameters.heads + item.head) * kChunks + chunk],
                      dout_row(stream, item.example, row, item.head)[chunk]);
}

template <int kDim>
MBT_DEVICE void store_row_state(const BackwardParameters& parameters, const BackwardItem& item,
                                int row, bool is_valid, float product) {
  constexpr int kRows = kQueryTileOf<kDim>;
  const BackwardStream& stream = item.stream;
  const int64_t heads = int64_t{parameters.batch} * parameters.heads;
  const int64_t at = head_number(parameters, item) * stream.rows + row;
  float* state = rows_state<kDim>(parameters, item, row / kRows * kRows) + row % kRows;
  float delta = product * item.choice();
  if (is_valid && stream.dlse) delta -= stream.dlse[at];
  state[0] = is_valid ? stream.stats[at] : 0.0f;
  state[kRows] = is_valid ? stream.stats[heads * stream.rows + at] : INFINITY;
  state[2 * kRows] = is_valid ? delta : 0.0f;
}

template <class Element, int kDim>
MBT_KERNEL(kDeltaThreads)
bottleneck_attention_bwd_delta_kernel(MBT_PARAMETERS BackwardParameters parameters) {
  constexpr int kChunks = kDim / 8;
  const BackwardItem item = backward_item(parameters, block_index());
  const int chunk = thread_index() % kChunks;
  for (int i = thread_index() / kChunks; i < kBackwardTile; i += kDeltaThreads / kChunks) {
    const int row = item.first_row + i;
    const bool is_valid = item.rows.is_valid(row);
    float product = is_valid ? dout_times_out<Element, kDim>(parameters, item, row, chunk) : 0.0f;
#pragma unroll
    for (int lanes = 1; lanes < kChunks; lanes *= 2) product += shuffle_xor(product, lanes);
    if (chunk == 0) store_row_state<kDim>(parameters, item, row, is_valid, product);
  }
  if (!item.stream.dq_sums) return;
  auto* sums = reinterpret_cast<Words*>(dq_sums<kDim>(parameters, item, item.first_row));
  for (int i = thread_index(); i < kBackwardTile * kDim / 4; i += kDeltaThreads)
    sums[i] = Words{0, 0, 0, 0};
}

}  // namespace mbt_fast::cuda
