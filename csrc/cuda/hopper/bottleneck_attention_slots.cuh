// The shared update: every present stream gets the mean of their slots, summed in the order of the
// call. A second, small kernel: slots are finished by blocks that know nothing of one another.
#pragma once

#include "../bottleneck_attention.hpp"
#include "launch.cuh"
#include "tiles.cuh"

namespace mbt_fast::cuda {

constexpr int kMeanThreads = 128;

struct MeanStream {
  const void* kept;
  void* out;
  const int32_t* lengths;
  int rows;
};

struct MeanParameters {
  MeanStream streams[kMaxStreams];
  int stream_count, batch, slots, row_words;  // words: 16 bytes of the H * D elements of a row
};

template <class Element>
MBT_DEVICE void add_words(float (&sums)[8], const Words& words) {
  const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sums[2 * i] += to_float<Element>(static_cast<uint16_t>(pairs[i] & 0xffff));
    sums[2 * i + 1] += to_float<Element>(static_cast<uint16_t>(pairs[i] >> 16));
  }
}

template <class Element>
MBT_DEVICE Words mean_words(const float (&sums)[8], float factor) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    pairs[i] = pack<Element>(sums[2 * i] * factor, sums[2 * i + 1] * factor);
  return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

template <class Element>
MBT_KERNEL(kMeanThreads)
slots_mean_kernel(MBT_PARAMETERS MeanParameters parameters) {
  const int number = block_index() * kMeanThreads + thread_index();
  const int row = number / parameters.row_words, word = number % parameters.row_words;
  const int example = row / parameters.slots, slot = row % parameters.slots;
  if (example >= parameters.batch) return;
  float sums[8] = {};
  int present = 0;
  for (int m = 0; m < parameters.stream_count; ++m) {
    const MeanStream& stream = parameters.streams[m];
    if (!rows_of(stream.rows, parameters.slots, stream.lengths, example).is_present) continue;
    add_words<Element>(sums, static_cast<const Words*>(stream.kept)[number]);
    ++present;
  }
  const Words mean =
      mean_words<Element>(sums, 1.0f / static_cast<float>(present > 0 ? present : 1));
  for (int m = 0; m < parameters.stream_count; ++m) {
    const MeanStream& stream = parameters.streams[m];
    const Rows rows = rows_of(stream.rows, parameters.slots, stream.lengths, example);
    const int64_t to = int64_t{example} * stream.rows + rows.first_slot + slot;
    static_cast<Words*>(stream.out)[to * parameters.row_words + word] =
        rows.is_present ? mean : Words{0, 0, 0, 0};
  }
}

}  // namespace mbt_fast::cuda
