// Where the parts of a head lie, padding, the shared update, and threads; the arithmetic is in
// bottleneck_attention_fwd.hpp and _bwd.hpp.
//
// The threads are torch's: importing torch has mapped its OpenMP runtime, and GNU's is the one that
// this module asks for too.
#include "bottleneck_attention.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "common.hpp"
#include "scratch.hpp"

namespace mbt_fast::cpu {
namespace {

// Rows of one example of a stream that take part. An absent stream has none.
struct Valid {
  int64_t own, count;  // own tokens; these and the slots
};

Valid valid_rows(const Stream& stream, int64_t example, int64_t slots) {
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

constexpr float kInfinity = std::numeric_limits<float>::infinity();

const void* at(const Call& call, const void* base, int64_t element) {
  return static_cast<const char*>(base) + call.bytes(element);
}
void* at(const Call& call, void* base, int64_t element) {
  return static_cast<char*>(base) + call.bytes(element);
}

// One head of one example of one stream.
struct Place {
  const Call& call;
  const Stream& stream;
  int64_t m, b, h;

  Place(const Call& call, const Stream& stream, const Task& task)
      : call(call), stream(stream), m(task.stream), b(task.example), h(task.head) {}

  int64_t tokens() const { return stream.rows - call.slots; }
  // Offsets of [B, H, S]; of part `which` of [B, S, parts, H, D]; of slot p of [M, B, P, H, D].
  int64_t statistics() const { return (b * call.heads + h) * stream.rows; }
  int64_t packed(int64_t parts, int64_t which) const {
    return ((b * stream.rows * parts + which) * call.heads + h) * call.dim;
  }
  int64_t slot(int64_t p) const {
    return (((m * call.batch + b) * call.slots + p) * call.heads + h) * call.dim;
  }
  int64_t row_stride() const { return call.heads * call.dim; }

  // Rows whose slots follow the own tokens.
  Rows rows(const void* own, int64_t stride) const {
    return {own, at(call, own, tokens() * stride), stride, stride};
  }
  OutRows rows(void* own, int64_t stride) const {
    return {own, at(call, own, tokens() * stride), stride, stride};
  }
  Rows qkv(int64_t which) const {
    const int64_t first =
        b * stream.stride_batch + which * stream.stride_which + h * stream.stride_head;
    return rows(at(call, stream.qkv, first), stream.stride_row);
  }
};

// Everything that forward and backward have in common.
void fill(Head& head, const Place& place, const Valid& valid, float* stats) {
  head.own = valid.own;
  head.count = valid.count;
  head.gap = place.stream.rows - valid.count;
  head.dim = place.call.dim;
  head.scale = place.call.scale;
  head.q = place.qkv(0);
  head.k = place.qkv(1);
  head.v = place.qkv(2);
  head.shift = stats + place.statistics();
  head.log2_sum = head.shift + place.call.batch * place.call.heads * place.stream.rows;
}

// Rows that do not take part lie between own tokens and slots, or are all.
struct Padding {
  int64_t first, last;
};
Padding padding(const Place& place, const Valid& valid) {
  return {valid.own, valid.count ? place.tokens() : place.stream.rows};
}

void set_zero(const Call& call, const OutRows& rows, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    std::memset(at(call, rows.own, row * rows.stride), 0, call.bytes(call.dim));
  }
}

void fill_padding(const HeadForward& head, const Place& place, const Padding& rows) {
  set_zero(place.call, head.out, rows.first, rows.last);
  std::fill(head.lse + rows.first, head.lse + rows.last, -kInfinity);
  std::fill(head.shift + rows.first, head.shift + rows.last, 0.0f);
  std::fill(head.log2_sum + rows.first, head.log2_sum + rows.last, 0.0f);
}

void fwd_task(const Call& call, const StreamForward& stream, const Task& task, void* kept,
              void* scratch) {
  const Place place(call, stream, task);
  const Valid valid = valid_rows(stream, place.b, call.slots);
  HeadForward head;
  fill(head, place, valid, stream.stats);
  head.lse = stream.lse + place.statistics();
  head.out = place.rows(at(call, stream.out, place.packed(1, 0)), place.row_stride());
  if (task.first == 0) fill_padding(head, place, padding(place, valid));
  if (kept) {
    head.out.slots = at(call, kept, place.slot(0));
    if (!valid.count) {
      set_zero(call, {head.out.slots, nullptr, place.row_stride(), 0}, 0, call.slots);
    }
  }
  head.first = task.first;
  head.last = task.last;
  if (valid.count) call.kernels().forward(head, scratch);
}

// Streams in which this example is present.
template <class AnyStream>
std::vector<int64_t> present_streams(const Call& call, const std::vector<AnyStream>& streams,
                                     int64_t example) {
  std::vector<int64_t> present;
  for (size_t m = 0; m < streams.size(); ++m) {
    if (valid_rows(streams[m], example, call.slots).count) present.push_back(m);
  }
  return present;
}

// Eq. 9: the mean of the kept slots becomes that row of every present stream. A slot of all heads is
// one row of H * D elements.
void share_slots(const Call& call, const std::vector<StreamForward>& streams, const void* kept) {
  const int64_t width = call.heads * call.dim;
  for (int64_t b = 0; b < call.batch; ++b) {
    const std::vector<int64_t> present = present_streams(call, streams, b);
    if (present.empty()) continue;
    for (int64_t p = 0; p < call.slots; ++p) {
      std::vector<const void*> rows;
      std::vector<void*> outs;
      for (const int64_t m : present) {
        rows.push_back(at(call, kept, ((m * call.batch + b) * call.slots + p) * width));
        const int64_t row = (b + 1) * streams[m].rows - call.slots + p;
        outs.push_back(at(call, streams[m].out, row * width));
      }
      call.kernels().divided_sum(rows.data(), rows.size(), rows.size(), width, outs[0]);
      for (size_t i = 1; i < outs.size(); ++i) std::memcpy(outs[i], outs[0], call.bytes(width));
    }
  }
}

// The gradient of the kept slots of one head, [P, D]: the mean over the present streams too.
void gradient_of_kept(const Call& call, const std::vector<StreamBackward>& streams,
                      const Task& task, void* to) {
  const std::vector<int64_t> present = present_streams(call, streams, task.example);
  for (int64_t p = 0; p < call.slots; ++p) {
    std::vector<const void*> rows;
    for (const int64_t m : present) {
      const StreamBackward& s = streams[m];
      rows.push_back(at(call, s.dout,
                        task.example * s.dout_stride_batch +
                            (s.rows - call.slots + p) * s.dout_stride_row +
                            task.head * s.dout_stride_head));
    }
    call.kernels().divided_sum(rows.data(), rows.size(), rows.size(), call.dim,
                               at(call, to, p * call.dim));
  }
}

void bwd_task(const Call& call, const std::vector<StreamBackward>& streams, const Task& task,
              const void* kept, void* kept_gradient, void* scratch) {
  const StreamBackward& stream = streams[task.stream];
  const Place place(call, stream, task);
  const Valid valid = valid_rows(stream, place.b, call.slots);
  OutRows dqkv[3];
  for (int64_t which = 0; which < 3; ++which) {
    dqkv[which] = place.rows(at(call, stream.dqkv, place.packed(3, which)), 3 * place.row_stride());
    const Padding rows = padding(place, valid);
    set_zero(call, dqkv[which], rows.first, rows.last);
  }
  if (!valid.count) return;
  HeadBackward head;
  fill(head, place, valid, stream.stats);
  head.out = place.rows(at(call, stream.out, place.packed(1, 0)), place.row_stride());
  head.dout = place.rows(at(call, stream.dout,
                            place.b * stream.dout_stride_batch + place.h * stream.dout_stride_head),
                         stream.dout_stride_row);
  if (kept) {
    gradient_of_kept(call, streams, task, kept_gradient);
    head.out.slots = at(call, kept, place.slot(0));
    head.dout.slots = kept_gradient;
    head.dout.slot_stride = call.dim;
  }
  head.dlse = stream.dlse ? stream.dlse + place.statistics() : nullptr;
  head.dq = dqkv[0];
  head.dk = dqkv[1];
  head.dv = dqkv[2];
  call.kernels().backward(head, scratch);
}

template <class AnyStream>
int64_t most_rows(const std::vector<AnyStream>& streams) {
  int64_t most = 0;
  for (const AnyStream& stream : streams) most = std::max(most, stream.rows);
  return most;
}

}  // namespace

void bottleneck_attention_fwd(const Call& call, const std::vector<StreamForward>& streams,
                              void* kept) {
  const std::vector<Task> tasks = tasks_of(call, streams, queries_per_task(call, streams));
  const int threads = threads_for(call, streams, tasks.size());
  const int64_t count = tasks.size(), most = most_rows(streams);
  const Scratch scratch(threads, call.kernels().forward_scratch(most, call.dim));
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) {
    fwd_task(call, streams[tasks[i].stream], tasks[i], kept, scratch.of_this_thread());
  }
  if (kept) share_slots(call, streams, kept);
}

void bottleneck_attention_bwd(const Call& call, const std::vector<StreamBackward>& streams,
                              const void* kept) {
  const int64_t most = most_rows(streams);
  const std::vector<Task> tasks = tasks_of(call, streams, std::max<int64_t>(1, most));
  const int threads = threads_for(call, streams, tasks.size());
  const int64_t count = tasks.size();
  const int64_t gradient = kept ? round_up(call.bytes(call.slots * call.dim), kAlignment) : 0;
  const Scratch scratch(threads, gradient + call.kernels().backward_scratch(most, call.dim));
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) {
    char* own = static_cast<char*>(scratch.of_this_thread());
    bwd_task(call, streams, tasks[i], kept, own, own + gradient);
  }
}

}  // namespace mbt_fast::cpu
