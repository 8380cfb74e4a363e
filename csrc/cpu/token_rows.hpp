// Tokens of one stream, as the layer's kernels find them.
#pragma once

#include <cstdint>

#include "element.hpp"

namespace mbt_fast::cpu {

// [B, S, C] with C elements side by side; strides in elements. `data` may be none.
struct TokenRows {
  void* data = nullptr;
  int64_t stride_batch = 0, stride_row = 0;
};

inline void* row_of(Dtype dtype, const TokenRows& rows, int64_t b, int64_t s) {
  return at(dtype, rows.data, b * rows.stride_batch + s * rows.stride_row);
}

}  // namespace mbt_fast::cpu
