// Chunks and threads of GELU with bias; the arithmetic is in bias_gelu_kernel.hpp.
//
// A narrow row would leave vectors half empty, so rows are taken several at a time, as one row with
// the bias repeated. Without a bias all elements are alike, and the row is as wide as a chunk.
#include "bias_gelu.hpp"

#include "rows.hpp"

namespace mbt_fast::cpu {
namespace {

constexpr int64_t kWide = 512;

class WideRows {
 public:
  WideRows(const GeluCall& call, const float* bias)
      : call_(call),
        repeats_(bias ? ceil_div(kWide, call.channels) : 1),
        width_(bias ? repeats_ * call.channels : kLeastElements),
        rows_(ceil_div(call.elements, width_)),
        per_chunk_(rows_per_chunk(rows_, width_)) {
    for (int64_t i = 0; bias && i < repeats_; ++i) {
      bias_.insert(bias_.end(), bias, bias + call.channels);
    }
  }

  int64_t width() const { return width_; }
  int64_t repeats() const { return repeats_; }
  int64_t chunks() const { return ceil_div(rows_, per_chunk_); }
  int threads() const { return threads_for(call_.threads, chunks()); }
  const float* bias() const { return bias_.empty() ? nullptr : bias_.data(); }

  // run(first element, how many) for every row of a chunk; the last row may be shorter
  template <class Run>
  void for_rows_of(int64_t chunk, const Run& run) const {
    const int64_t last = smaller(rows_, (chunk + 1) * per_chunk_);
    for (int64_t row = chunk * per_chunk_; row < last; ++row) {
      run(row * width_, smaller(width_, call_.elements - row * width_));
    }
  }

 private:
  const GeluCall& call_;
  int64_t repeats_, width_, rows_, per_chunk_;
  std::vector<float> bias_;
};

}  // namespace

void bias_gelu_fwd(const GeluCall& call, const void* x, const float* bias, void* out) {
  const auto kernel = call.isa.layers[call.dtype]->bias_gelu_fwd[call.approximate];
  const WideRows wide(call, bias);
  const int64_t chunks = wide.chunks();
#pragma omp parallel for schedule(dynamic, 1) num_threads(wide.threads())
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    wide.for_rows_of(chunk, [&](int64_t first, int64_t count) {
      kernel(at(call.dtype, x, first), wide.bias(), count, at(call.dtype, out, first));
    });
  }
}

void bias_gelu_bwd(const GeluCall& call, const void* x, const float* bias, const void* dout,
                   void* dx, float* dbias) {
  const auto kernel = call.isa.layers[call.dtype]->bias_gelu_bwd[call.approximate];
  const WideRows wide(call, bias);
  const int64_t chunks = wide.chunks(), width = bias ? wide.width() : 0;
  PartialSums sums(chunks, width);
#pragma omp parallel for schedule(dynamic, 1) num_threads(wide.threads())
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    wide.for_rows_of(chunk, [&](int64_t first, int64_t count) {
      kernel(at(call.dtype, x, first), wide.bias(), at(call.dtype, dout, first), count,
             at(call.dtype, dx, first), bias ? sums.of(chunk) : nullptr);
    });
  }
  if (!bias) return;
  std::vector<float> all(width);
  sums.add_up(0, chunks, all.data());
  std::fill(dbias, dbias + call.channels, 0.0f);
  for (int64_t i = 0; i < width; ++i) dbias[i % call.channels] += all[i];
}

}  // namespace mbt_fast::cpu
