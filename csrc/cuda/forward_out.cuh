// What the forward leaves behind: rows of out, the log-sum-exp, and the softmax's two parts.
#pragma once

#include <math.h>

#include "forward_items.cuh"
#include "softmax.cuh"

namespace mbt_fast::cuda {

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
  const int lane = thread_index() % kWarpGroup;
  for (int i = lane; i < kGroupRows * kDim / 8; i += kWarpGroup) {
    const int row = first + i / (kDim / 8);
    if (row < item.rows.count)
      out_row<kDim>(parameters, item, row)[i % (kDim / 8)] = Words{0, 0, 0, 0};
  }
  if (lane < kGroupRows && first + lane < item.rows.count)
    store_statistics(parameters, item, first + lane, -INFINITY, 0.0f);
}

// Through the shared memory of the group's queries, so that whole rows are stored.
template <class Element, int kDim>
MBT_DEVICE void store_out(const ForwardParameters& parameters, const ForwardMemory<kDim>& memory,
                          const ForwardItem& item, int group, float (&out)[kDim / 2],
                          Softmax& softmax) {
  const int lane = thread_index() % kWarp, warp = thread_index() % kWarpGroup / kWarp;
  const SharedAddress rows = memory.queries(group);
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

}  // namespace mbt_fast::cuda
