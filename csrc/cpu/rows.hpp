// Where the rows of a stream lie, and how the rows of a call fall into chunks for threads.
//
// Chunks depend on the shape alone, so that sums over them, added up in their order, are the same
// bits for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common.hpp"
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

constexpr int64_t kMostChunks = 256;
constexpr int64_t kLeastElements = 32768;  // of a chunk: some microseconds of work

inline int64_t rows_per_chunk(int64_t rows, int64_t width) {
  return std::max(ceil_div(rows, kMostChunks), ceil_div(kLeastElements, width));
}

inline int threads_for(int threads, int64_t tasks) {
  return static_cast<int>(std::clamp<int64_t>(tasks, 1, threads));
}

// Rows of one stream, numbered through all examples.
struct Chunk {
  int64_t stream, first, last;
};

// `rows` has those of each stream.
inline std::vector<Chunk> chunks_of(const std::vector<int64_t>& rows, int64_t width) {
  std::vector<Chunk> chunks;
  for (size_t m = 0; m < rows.size(); ++m) {
    const int64_t most = rows_per_chunk(rows[m], width);
    for (int64_t first = 0; first < rows[m]; first += most) {
      chunks.push_back({static_cast<int64_t>(m), first, smaller(rows[m], first + most)});
    }
  }
  return chunks;
}

// One row of `width` sums for each chunk.
class PartialSums {
 public:
  PartialSums(int64_t chunks, int64_t width) : width_(width), sums_(chunks * width) {}

  float* of(int64_t chunk) { return sums_.data() + chunk * width_; }

  // to[i] = the sum over chunks first .. last, in their order
  void add_up(int64_t first, int64_t last, float* to) const {
    std::fill(to, to + width_, 0.0f);
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const float* from = sums_.data() + chunk * width_;
      for (int64_t i = 0; i < width_; ++i) to[i] += from[i];
    }
  }

 private:
  int64_t width_;
  std::vector<float> sums_;
};

}  // namespace mbt_fast::cpu
