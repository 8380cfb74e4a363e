// What the forward and the backward check and describe alike on the host.
#pragma once

#include <algorithm>
#include <array>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "../bottleneck_attention.hpp"
#include "launch.cuh"

namespace mbt_fast::cuda {

constexpr double kLog2E = 1.4426950408889634;

inline void must(bool holds, const std::string& requirement, int64_t value) {
  if (!holds) throw std::invalid_argument(requirement + ", got " + std::to_string(value));
}

constexpr int64_t kMostItems = INT32_MAX;

inline int64_t tiles_of(int64_t rows, int tile) { return (rows + tile - 1) / tile; }

// Items of a launch are tiles of `tile` rows of a head.
template <class AnyStream>
void check_call(const Call& call, const std::vector<AnyStream>& streams, int tile) {
  const auto count = static_cast<int64_t>(streams.size());
  must(count <= kMaxStreams, "qkv must have at most " + std::to_string(kMaxStreams) + " streams",
       count);
  int64_t items = 0;
  for (const AnyStream& stream : streams) {
    must(stream.rows <= kMostItems - tile, "qkv must have fewer than 2^31 rows", stream.rows);
    items += tiles_of(stream.rows, tile) * call.batch * call.heads;
  }
  must(items <= kMostItems, "qkv must have fewer than 2^31 tiles", items);
  check_device();
}

// Numbers of the streams with rows, the longest first: short ones fill the gaps at the end.
template <class AnyStream>
std::vector<size_t> longest_first(const std::vector<AnyStream>& streams) {
  std::vector<size_t> order;
  for (size_t m = 0; m < streams.size(); ++m)
    if (streams[m].rows > 0) order.push_back(m);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return streams[a].rows > streams[b].rows; });
  return order;
}

// How many blocks stay and share these items.
inline int blocks_of(int items) { return std::min(items, multiprocessors()); }

// [B, S, which, H, D] in boxes of `box` rows of 64 channels; `strides` of the first four. Those of
// dimensions of size 1 mean nothing: any will do.
inline TensorMap map_of(const std::string& name, const Call& call, void* base, int64_t rows,
                        int64_t which, const std::array<int64_t, 4>& strides, int box) {
  const auto size = [](int64_t count) { return static_cast<uint64_t>(count); };
  const auto stride = [&](int64_t elements, int64_t count) {
    return static_cast<uint64_t>(2 * (count > 1 ? elements : call.dim));
  };
  const MapElement element = call.is_half ? MapElement::kFloat16 : MapElement::kBfloat16;
  return make_tensor_map(
      name, {element,
             base,
             {size(call.dim), size(rows), size(call.heads), size(which), size(call.batch)},
             {stride(strides[1], rows), stride(strides[3], call.heads), stride(strides[2], which),
              stride(strides[0], call.batch)},
             {kPanelColumns, static_cast<uint32_t>(box), 1, 1, 1},
             true});
}
inline TensorMap qkv_map(const std::string& name, const Call& call, const Stream& stream, int box) {
  return map_of(name, call, stream.qkv, stream.rows, 3,
                {stream.stride_batch, stream.stride_row, stream.stride_which, stream.stride_head},
                box);
}

}  // namespace mbt_fast::cuda
