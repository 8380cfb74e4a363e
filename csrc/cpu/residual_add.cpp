// The slots of an example, in all streams, are one task; own rows of one stream are another. No task
// waits for the rows of another one.
#include "residual_add.hpp"

#include <cstring>

namespace mbt_fast::cpu {
namespace {

// slots(b) for every example, if there are any; own_rows(stream, b, s, count) for all other rows.
template <class AnyStream, class Slots, class OwnRows>
void for_all(const ResidualCall& call, const std::vector<AnyStream>& streams, const Slots& slots,
             const OwnRows& own_rows) {
  std::vector<int64_t> rows;
  for (const AnyStream& stream : streams) rows.push_back(call.batch * (stream.rows - call.slots));
  const std::vector<Chunk> chunks = chunks_of(rows, call.channels);
  const int64_t examples = call.slots ? call.batch : 0, tasks = examples + chunks.size();
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_for(call.threads, tasks))
  for (int64_t task = 0; task < tasks; ++task) {
    if (task < examples) {
      slots(task);
      continue;
    }
    const Chunk& chunk = chunks[task - examples];
    const AnyStream& stream = streams[chunk.stream];
    const int64_t own = stream.rows - call.slots;
    for (int64_t row = chunk.first, count; row < chunk.last; row += count) {
      count = smaller(chunk.last - row, own - row % own);
      own_rows(stream, row / own, row % own, count);
    }
  }
}

template <class AnyStream>
bool is_present(const AnyStream& stream, int64_t b) {
  return !stream.lengths || stream.lengths[b] > 0;
}

template <class AnyStream>
bool is_kept(const AnyStream& stream, int64_t b) {
  return !stream.keep || stream.keep[b];
}

// run(s, how many) for `count` rows from s on: all at once if no gap lies between them.
template <class Run>
void for_runs(bool is_dense, int64_t s, int64_t count, const Run& run) {
  const int64_t step = is_dense ? count : 1;
  for (const int64_t last = s + count; s < last; s += step) run(s, step);
}

bool is_dense(const ResidualCall& call, const TokenRows& rows) {
  return rows.stride_row == call.channels;
}

void write_sums(const ResidualCall& call, const ResidualForward& stream, int64_t b, int64_t first,
                int64_t count) {
  const bool dense = is_dense(call, stream.stream) && is_dense(call, stream.branch);
  for_runs(dense, first, count, [&](int64_t s, int64_t rows) {
    const void* x = row_of(call.dtype, stream.stream, b, s);
    void* sum = row_of(call.dtype, stream.sums, b, s);
    if (is_kept(stream, b)) {
      const void* branch = row_of(call.dtype, stream.branch, b, s);
      call.isa.layers[call.dtype]->add(x, branch, rows * call.channels, sum);
    } else {
      std::memcpy(sum, x, rows * call.row_bytes());
    }
  });
}

// Eq. 9 for one slot: the mean of the sums of the present streams, written to all of them.
void share_slot(const ResidualCall& call, const std::vector<ResidualForward>& streams, int64_t b,
                int64_t p) {
  std::vector<void*> sums, others;
  for (const ResidualForward& stream : streams) {
    const int64_t s = stream.rows - call.slots + p;
    const bool present = is_present(stream, b);
    if (present) write_sums(call, stream, b, s, 1);
    (present ? sums : others).push_back(row_of(call.dtype, stream.sums, b, s));
  }
  if (sums.empty()) {
    for (void* row : others) std::memset(row, 0, call.row_bytes());
    return;
  }
  const int64_t count = sums.size();
  call.isa.heads[call.dtype]->divided_sum(sums.data(), count, count, call.channels, sums[0]);
  others.insert(others.end(), sums.begin() + 1, sums.end());
  for (void* row : others) std::memcpy(row, sums[0], call.row_bytes());
}

// The branch's own gradient: the stream's where the branch was kept, else zero.
void write_branch_gradient(const ResidualCall& call, const ResidualBackward& stream, int64_t b,
                           int64_t s, int64_t rows, const void* dx) {
  if (!stream.dbranch.data) return;
  void* to = row_of(call.dtype, stream.dbranch, b, s);
  if (is_kept(stream, b)) {
    std::memcpy(to, dx, rows * call.row_bytes());
  } else {
    std::memset(to, 0, rows * call.row_bytes());
  }
}

void write_gradients(const ResidualCall& call, const ResidualBackward& stream, int64_t b,
                     int64_t first, int64_t count) {
  for_runs(is_dense(call, stream.dsums), first, count, [&](int64_t s, int64_t rows) {
    const void* dsum = row_of(call.dtype, stream.dsums, b, s);
    if (stream.dx.data) {
      std::memcpy(row_of(call.dtype, stream.dx, b, s), dsum, rows * call.row_bytes());
    }
    write_branch_gradient(call, stream, b, s, rows, dsum);
  });
}

// All streams have received the mean, and the present ones have given to it.
void share_gradient_of_slot(const ResidualCall& call, const std::vector<ResidualBackward>& streams,
                            int64_t b, int64_t p) {
  std::vector<const void*> arriving;
  std::vector<void*> present;
  for (const ResidualBackward& stream : streams) {
    const int64_t s = stream.rows - call.slots + p;
    arriving.push_back(row_of(call.dtype, stream.dsums, b, s));
    void* dx = row_of(call.dtype, stream.dx, b, s);
    if (is_present(stream, b)) {
      present.push_back(dx);
    } else {
      std::memset(dx, 0, call.row_bytes());
    }
  }
  if (!present.empty()) {
    call.isa.heads[call.dtype]->divided_sum(arriving.data(), arriving.size(), present.size(),
                                            call.channels, present[0]);
    for (size_t i = 1; i < present.size(); ++i) {
      std::memcpy(present[i], present[0], call.row_bytes());
    }
  }
  for (const ResidualBackward& stream : streams) {
    const int64_t s = stream.rows - call.slots + p;
    write_branch_gradient(call, stream, b, s, 1, row_of(call.dtype, stream.dx, b, s));
  }
}

}  // namespace

void residual_add_fwd(const ResidualCall& call, const std::vector<ResidualForward>& streams) {
  const auto slots = [&](int64_t b) {
    for (int64_t p = 0; p < call.slots; ++p) share_slot(call, streams, b, p);
  };
  for_all(call, streams, slots, [&](const auto&... rows) { write_sums(call, rows...); });
}

void residual_add_bwd(const ResidualCall& call, const std::vector<ResidualBackward>& streams) {
  const auto slots = [&](int64_t b) {
    for (int64_t p = 0; p < call.slots; ++p) share_gradient_of_slot(call, streams, b, p);
  };
  for_all(call, streams, slots, [&](const auto&... rows) { write_gradients(call, rows...); });
}

}  // namespace mbt_fast::cpu
