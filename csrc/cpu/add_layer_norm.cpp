// Where the rows of a call lie, the shared slots, and threads; the arithmetic is in add_layer_norm_kernel.hpp.
//
// Slots come first forward and last backward, because the mean of Eq. 9 joins the streams; all other
// rows are on their own.
#include "add_layer_norm.hpp"

#include <cstring>

namespace mbt_fast::cpu {
namespace {

void* row_of(const NormCall& call, const TokenRows& rows, int64_t b, int64_t s) {
  return row_of(call.dtype, rows, b, s);
}

template <class AnyStream>
std::vector<Chunk> chunks_of(const NormCall& call, const std::vector<AnyStream>& streams) {
  std::vector<int64_t> rows;
  for (const AnyStream& stream : streams) rows.push_back(call.batch * stream.rows);
  return cpu::chunks_of(rows, call.channels);
}

// Eq. 9 for every slot of one example: `of(stream)` names the rows; their mean over the present
// streams replaces them there, and zero elsewhere.
template <class AnyStream>
void share_slots(const NormCall& call, const std::vector<AnyStream>& streams, int64_t b,
                 TokenRows AnyStream::*of) {
  const size_t bytes = call.channels * size_of(call.dtype);
  for (int64_t p = 0; p < call.slots; ++p) {
    std::vector<void*> present, absent;
    for (const AnyStream& stream : streams) {
      const bool is_present = !stream.lengths || stream.lengths[b] > 0;
      (is_present ? present : absent)
          .push_back(row_of(call, stream.*of, b, stream.rows - call.slots + p));
    }
    for (void* row : absent) std::memset(row, 0, bytes);
    if (present.empty()) continue;
    call.isa.heads[call.dtype]->divided_sum(present.data(), present.size(), present.size(),
                                            call.channels, present[0]);
    for (size_t i = 1; i < present.size(); ++i) std::memcpy(present[i], present[0], bytes);
  }
}

template <class AnyStream>
void share_all_slots(const NormCall& call, const std::vector<AnyStream>& streams,
                     TokenRows AnyStream::*of) {
  if (!call.slots) return;
#pragma omp parallel for num_threads(threads_for(call.threads, call.batch))
  for (int64_t b = 0; b < call.batch; ++b) share_slots(call, streams, b, of);
}

// The sum in its place; where nothing is added, a copy, or the stream itself.
void* sum_row(const NormCall& call, const NormForward& stream, int64_t b, int64_t s) {
  void* x = row_of(call, stream.stream, b, s);
  if (!stream.sums.data) return x;
  void* sum = row_of(call, stream.sums, b, s);
  if (stream.branch.data && (!stream.keep || stream.keep[b])) {
    call.kernels().add(x, row_of(call, stream.branch, b, s), call.channels, sum);
  } else {
    std::memcpy(sum, x, call.channels * size_of(call.dtype));
  }
  return sum;
}

void sum_slots(const NormCall& call, const std::vector<NormForward>& streams) {
  for (const NormForward& stream : streams) {
    for (int64_t b = 0; b < call.batch; ++b) {
      for (int64_t s = stream.rows - call.slots; s < stream.rows; ++s) sum_row(call, stream, b, s);
    }
  }
}

void forward_chunk(const NormCall& call, const NormForward& stream, const Chunk& chunk) {
  const int64_t own = stream.rows - call.slots;
  NormRow row;
  row.weight = stream.weight;
  row.bias = stream.bias;
  row.channels = call.channels;
  row.eps = call.eps;
  for (int64_t number = chunk.first; number < chunk.last; ++number) {
    const int64_t b = number / stream.rows, s = number % stream.rows;
    row.x = s < own ? sum_row(call, stream, b, s) : row_of(call, stream.sums, b, s);
    row.out = row_of(call, stream.out, b, s);
    row.mean = stream.stats + number;
    row.rstd = row.mean + call.batch * stream.rows;
    call.kernels().layer_norm_fwd(row);
  }
}

// The branch's own gradient: the stream's where the branch was kept, else zero.
void write_branch_gradient(const NormCall& call, const NormBackward& stream, int64_t b, int64_t s) {
  if (!stream.keep) return;
  void* to = row_of(call, stream.dbranch, b, s);
  const size_t bytes = call.channels * size_of(call.dtype);
  if (stream.keep[b]) {
    std::memcpy(to, row_of(call, stream.dx, b, s), bytes);
  } else {
    std::memset(to, 0, bytes);
  }
}

void write_branch_gradients_of_slots(const NormCall& call,
                                     const std::vector<NormBackward>& streams) {
  for (const NormBackward& stream : streams) {
    for (int64_t b = 0; b < call.batch; ++b) {
      for (int64_t s = stream.rows - call.slots; s < stream.rows; ++s) {
        write_branch_gradient(call, stream, b, s);
      }
    }
  }
}

void backward_chunk(const NormCall& call, const NormBackward& stream, const Chunk& chunk,
                    float* dparameters) {
  NormRowGradient row;
  row.weight = stream.weight;
  row.channels = call.channels;
  row.dweight = dparameters;
  row.dbias = dparameters + call.channels;
  for (int64_t number = chunk.first; number < chunk.last; ++number) {
    const int64_t b = number / stream.rows, s = number % stream.rows;
    row.x = row_of(call, stream.sums, b, s);
    row.dout = row_of(call, stream.dout, b, s);
    row.dsum = stream.dsums.data ? row_of(call, stream.dsums, b, s) : nullptr;
    row.mean = stream.stats[number];
    row.rstd = stream.stats[number + call.batch * stream.rows];
    row.dx = row_of(call, stream.dx, b, s);
    call.kernels().layer_norm_bwd(row);
    if (s < stream.rows - call.slots) write_branch_gradient(call, stream, b, s);
  }
}

}  // namespace

void add_layer_norm_fwd(const NormCall& call, const std::vector<NormForward>& streams) {
  sum_slots(call, streams);
  share_all_slots(call, streams, &NormForward::sums);
  const std::vector<Chunk> chunks = chunks_of(call, streams);
  const int64_t count = chunks.size();
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_for(call.threads, count))
  for (int64_t i = 0; i < count; ++i) forward_chunk(call, streams[chunks[i].stream], chunks[i]);
}

void add_layer_norm_bwd(const NormCall& call, const std::vector<NormBackward>& streams) {
  const std::vector<Chunk> chunks = chunks_of(call, streams);
  const int64_t count = chunks.size();
  PartialSums sums(count, 2 * call.channels);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_for(call.threads, count))
  for (int64_t i = 0; i < count; ++i) {
    backward_chunk(call, streams[chunks[i].stream], chunks[i], sums.of(i));
  }
  share_all_slots(call, streams, &NormBackward::dx);
  write_branch_gradients_of_slots(call, streams);
  for (size_t m = 0; m < streams.size(); ++m) {
    const auto is_of = [&](const Chunk& chunk) { return chunk.stream == static_cast<int64_t>(m); };
    const auto first = std::find_if(chunks.begin(), chunks.end(), is_of);
    const auto last = std::find_if_not(first, chunks.end(), is_of);
    sums.add_up(first - chunks.begin(), last - chunks.begin(), streams[m].dparameters);
  }
}

}  // namespace mbt_fast::cpu
