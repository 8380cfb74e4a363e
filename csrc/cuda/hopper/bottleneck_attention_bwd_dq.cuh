// Backward, last launch where dq was added up: scaled, rounded, and put in order.
//
// Sums lie as a product leaves them in registers: the four threads of a quad hold two columns each
// of rows r and r + 8. A thread here takes 8 columns of both.
#pragma once

#include "bottleneck_attention_bwd.cuh"

namespace mbt_fast::cuda {

constexpr int kDqThreads = 256;

template <class Element, int kDim>
MBT_DEVICE void store_dq(const BackwardParameters& parameters, const BackwardItem& item, int first,
                         int warp, int row, int chunk) {
  const float* sums = dq_sums<kDim>(parameters, item, first) +
                      ((chunk * kWarpGroup) + warp * kWarp + row * 4) * 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int to = first + 16 * warp + row + 8 * half;
    if (to >= item.rows.count) continue;
    uint32_t pairs[4] = {};
    if (item.rows.is_valid(to)) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        pairs[i] = pack<Element>(sums[4 * i + 2 * half] * parameters.scale,
                                 sums[4 * i + 2 * half + 1] * parameters.scale);
    }
    dqkv_row<kDim>(parameters, item, to, 0)[chunk] = {pairs[0], pairs[1], pairs[2], pairs[3]};
  }
}

template <class Element, int kDim>
MBT_KERNEL(kDqThreads)
bottleneck_attention_bwd_dq_kernel(MBT_PARAMETERS BackwardParameters parameters) {
  constexpr int kChunks = kDim / 8, kRows = 8;
  const BackwardItem item = backward_item(parameters, block_index());
  for (int i = thread_index(); i < kBackwardTile / 2 * kChunks; i += kDqThreads) {
    const int chunk = i % kChunks, row = i / kChunks % kRows, warp = i / kChunks / kRows;
    store_dq<Element, kDim>(parameters, item, item.first_row + warp / 4 * kGroupRows, warp % 4, row,
                            chunk);
  }
}

}  // namespace mbt_fast::cuda
