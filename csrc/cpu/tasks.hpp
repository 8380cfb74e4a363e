// How a call falls into tasks for threads.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.hpp"
#include "common.hpp"

namespace mbt_fast::cpu {

// Rows of one example of a stream that take part. An absent stream has none.
struct Valid {
  int64_t own, count;  // own tokens; these and the slots
};

inline Valid valid_rows(const Stream& stream, int64_t example, int64_t slots) {
  const int64_t tokens = stream.rows - slots;
  if (!stream.lengths) return {tokens, stream.rows};
  const int64_t own = std::clamp<int64_t>(stream.lengths[example], 0, tokens);
  return {own, own ? own + slots : 0};
}

// One head of one example of a stream, and its queries first .. last, by number.
struct Task {
  int64_t stream, example, head, first, last;
};

// All tasks of a call, longest streams first. `most` queries to a task; an absent stream is one
// task too, because its results are zeros.
template <class AnyStream>
std::vector<Task> tasks_of(const Call& call, const std::vector<AnyStream>& streams, int64_t most) {
  std::vector<int64_t> order(streams.size());
  for (size_t m = 0; m < order.size(); ++m) order[m] = static_cast<int64_t>(m);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return streams[a].rows > streams[b].rows; });
  std::vector<Task> tasks;
  for (const int64_t m : order) {
    for (int64_t b = 0; b < call.batch; ++b) {
      const int64_t count = valid_rows(streams[m], b, call.slots).count;
      for (int64_t h = 0; h < call.heads; ++h) {
        tasks.push_back({m, b, h, 0, std::min(count, most)});
        for (int64_t first = most; first < count; first += most) {
          tasks.push_back({m, b, h, first, std::min(count, first + most)});
        }
      }
    }
  }
  return tasks;
}

// A head is split between queries only where there are too few heads to keep the threads busy,
// because each piece packs the keys again.
template <class AnyStream>
int64_t queries_per_task(const Call& call, const std::vector<AnyStream>& streams) {
  constexpr int64_t kTasksPerThread = 3;
  const int64_t block = call.kernels().query_block;
  int64_t blocks = 0;
  for (const AnyStream& stream : streams) blocks += ceil_div(stream.rows, block);
  blocks *= call.batch * call.heads;
  return std::max<int64_t>(1, ceil_div(blocks, kTasksPerThread * call.threads)) * block;
}

// Threads that are worth waking: none for less than 2^20 multiply-adds, some ten microseconds.
template <class AnyStream>
int threads_for(const Call& call, const std::vector<AnyStream>& streams, int64_t tasks) {
  int64_t pairs = 0;
  for (const AnyStream& stream : streams) pairs += stream.rows * stream.rows;
  const int64_t worth = 1 + (call.batch * call.heads * pairs * call.dim >> 20);
  return static_cast<int>(std::min({int64_t{call.threads}, tasks, worth}));
}

}  // namespace mbt_fast::cpu
