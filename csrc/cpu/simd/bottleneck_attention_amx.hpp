// Attention of one head on AMX tiles, forward and backward.
//
// The forward is that of bottleneck_attention_fwd.hpp, pipelined: the softmax of one block of keys is
// cut into pieces, and one piece follows every step of the products of the neighbouring blocks.
//
//                  block j - 1        block j               block j + 1
//   tiles          o^T += v^T p^T                           s^T = k q^T
//   vectors                           maximum, exponentials
//
// Tiles and vectors are units of their own, but a CPU looks only some hundred instructions ahead, so
// the program must bring both kinds together. Scores and p are kept twice. What is computed stays the
// same, but for the order in which the exponentials of a row are summed. How much it gains has not
// been measured: no machine with AMX has run it.
//
// Invariant: o is scaled down for the maximum of block j after the product of block j - 1 and before
// that of block j.
#pragma once

#include "kernel_tables.hpp"
#include "split.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

template <class Product>
struct PipelineBuffers {
  ForwardBuffers<Product> even, odd;  // blocks of keys; they differ in s and p alone
  float* shrink;                      // [kQueries]: what o waits for

  PipelineBuffers(Arena& arena, int64_t count, int64_t dim)
      : even(arena, count, dim), odd(even), shrink(arena.take<float>(kQueries)) {
    odd.s = arena.take<float>(kKeys * kQueries);
    odd.p = arena.take<uint32_t>(words<Product>(kKeys) * kQueries);
  }
};

template <class Product, class T>
int64_t bottleneck_attention_fwd_pipelined_scratch(int64_t count, int64_t dim) {
  Arena arena(nullptr);
  PipelineBuffers<Product>(arena, count, dim);
  return arena.used();
}

// The softmax of one block of keys, piece by piece: for each vector of queries its maximum, and then
// its exponentials, kKeysAtOnce at a time.
template <class Product>
class SoftmaxPieces {
 public:
  SoftmaxPieces(const ForwardBuffers<Product>& b, float* shrink, int64_t keys, int64_t vectors,
                float factor)
      : b_(b), shrink_(shrink), keys_(keys), lanes_(vectors * kLanes), scale_(splat(factor)) {}

  void operator()() {  // the next piece, if there is one
    if (lane_ == lanes_) return;
    if (key_ < 0) {
      find_maximum();
      key_ = 0;
      return;
    }
    const int64_t count = smaller(kKeysAtOnce, keys_ - key_);
    const Floats more = exponentials<Product>(
        b_.s + key_ * kQueries + lane_, count, scale_, load(b_.shift + lane_),
        b_.p + words<Product>(key_) / Product::kParts * kQueries + lane_);
    store(b_.sum + lane_, add(load(b_.sum + lane_), more));
    key_ += count;
    if (key_ < keys_) return;
    key_ = -1;
    lane_ += kLanes;
  }

  void finish() {
    while (lane_ < lanes_) (*this)();
  }

 private:
  static constexpr int64_t kKeysAtOnce = 32;  // whole steps of a product

  void find_maximum() {
    const Floats before = load(b_.shift + lane_);
    Floats shift = before;
    for (int64_t key = 0; key < keys_; ++key) {
      shift = max(shift, mul(load(b_.s + key * kQueries + lane_), scale_));
    }
    const Floats shrink = exp2<6>(sub(before, shift));
    store(b_.shift + lane_, shift);
    store(shrink_ + lane_, shrink);
    store(b_.sum + lane_, mul(load(b_.sum + lane_), shrink));
  }

  const ForwardBuffers<Product> b_;
  float* const shrink_;
  const int64_t keys_, lanes_;
  const Floats scale_;
  int64_t lane_ = 0, key_ = -1;  // -1: the maximum comes next
};

template <class Product>
inline void scale_down(const ForwardBuffers<Product>& b, const float* shrink, int64_t vectors,
                       int64_t dim) {
  for (int64_t lane = 0; lane < vectors * kLanes; lane += kLanes) {
    const Floats factor = load(shrink + lane);
    if (!any_greater(splat(1.0f), factor)) continue;
    for (int64_t d = 0; d < dim; ++d) {
      float* o = b.o + d * kQueries + lane;
      store(o, mul(load(o), factor));
    }
  }
}

template <class Product, class T>
void bottleneck_attention_fwd_pipelined(const HeadForward& h, void* scratch) {
  Arena arena(scratch);
  const PipelineBuffers<Product> buffers(arena, h.count, h.dim);
  const int64_t width = row_words<Product>(h.dim), lanes = round_up(h.dim, kLanes);
  const int64_t key_words = words<Product>(kKeys), blocks = ceil_div(h.count, kKeys);
  const auto of = [&](int64_t block) { return block % 2 ? buffers.odd : buffers.even; };
  const auto keys = [&](int64_t block) { return smaller(kKeys, h.count - block * kKeys); };
  pack_keys_and_values<Product, T>(h, buffers.even);
  for (int64_t first = h.first; first < h.last; first += kQueries) {
    const int64_t queries = smaller(kQueries, h.last - first), vectors = ceil_div(queries, kLanes);
    start_queries<Product, T>(h, buffers.even, first);
    const auto scores = [&](int64_t block, auto& meanwhile) {
      const ForwardBuffers<Product> b = of(block);
      multiply<Product, false>({b.k + block * kKeys * width, width}, {b.q_t, kQueries},
                               {b.s, kQueries}, keys(block), vectors, words<Product>(h.dim),
                               meanwhile);
    };
    const auto mix = [&](int64_t block, auto& meanwhile) {
      const ForwardBuffers<Product> b = of(block);
      scale_down(b, buffers.shrink, vectors, h.dim);
      multiply<Product, true>({b.v + block * lanes * key_words, key_words}, {b.p, kQueries},
                              {b.o, kQueries}, h.dim, vectors, words<Product>(keys(block)),
                              meanwhile);
    };
    Nothing nothing;
    scores(0, nothing);
    for (int64_t block = 0; block < blocks; ++block) {
      SoftmaxPieces<Product> softmax(of(block), buffers.shrink, keys(block), vectors,
                                     h.scale * kLog2E);
      if (block > 0) mix(block - 1, softmax);
      if (block + 1 < blocks) scores(block + 1, softmax);
      softmax.finish();
    }
    mix(blocks - 1, nothing);
    store_results<Product, T>(h, buffers.even, first, queries);
  }
}

// Tiles are set up for the time of one head, and then released.
template <class Product, class T>
void tiled_forward(const HeadForward& h, void* scratch) {
  const TilesOfThisThread tiles;
  bottleneck_attention_fwd_pipelined<Product, T>(h, scratch);
}
template <class Product, class T>
void tiled_backward(const HeadBackward& h, void* scratch) {
  const TilesOfThisThread tiles;
  bottleneck_attention_bwd<Product, T>(h, scratch);
}

template <class T>
inline bool has_infinity(const Head& h, const Rows& rows) {
  const RowsOf<T> x{rows, h.own, h.count};
  const Words magnitude = splat_word(0x7fffffff), infinity = splat_word(0x7f800000);
  for (int64_t r = 0; r < h.count; ++r) {
    __mmask16 found = 0;
    for (int64_t d = 0; d < h.dim; d += kLanes) {
      const Words bits = as_words(load_elements(x[r] + d, h.dim - d));
      found |= _mm512_cmpeq_epi32_mask(_mm512_and_si512(bits, magnitude), infinity);
    }
    if (found) return true;
  }
  return false;
}

// Split products, but float32 ones where an operand is infinite. All rows of the head decide, so
// that a head split between threads takes one way.
template <class Product, class T, Dtype kDtype>
void split_forward(const HeadForward& h, void* scratch) {
  if (has_infinity<T>(h, h.q) || has_infinity<T>(h, h.k) || has_infinity<T>(h, h.v)) {
    return kAvx512[kDtype].forward(h, scratch);
  }
  tiled_forward<Product, T>(h, scratch);
}
template <class Product, class T, Dtype kDtype>
void split_backward(const HeadBackward& h, void* scratch) {
  if (has_infinity<T>(h, h.q) || has_infinity<T>(h, h.k) || has_infinity<T>(h, h.v) ||
      has_infinity<T>(h, h.dout)) {
    return kAvx512[kDtype].backward(h, scratch);
  }
  tiled_backward<Product, T>(h, scratch);
}
template <class Product, class T, Dtype kDtype>
int64_t split_forward_scratch(int64_t count, int64_t dim) {
  return larger(bottleneck_attention_fwd_pipelined_scratch<Product, T>(count, dim),
                kAvx512[kDtype].forward_scratch(count, dim));
}
template <class Product, class T, Dtype kDtype>
int64_t split_backward_scratch(int64_t count, int64_t dim) {
  return larger(bottleneck_attention_bwd_scratch<Product, T>(count, dim),
                kAvx512[kDtype].backward_scratch(count, dim));
}

constexpr HeadKernels bf16_pairs_kernels() {
  HeadKernels kernels = head_kernels<Bf16Pairs, Bfloat16>();
  kernels.forward = &tiled_forward<Bf16Pairs, Bfloat16>;
  kernels.forward_scratch = &bottleneck_attention_fwd_pipelined_scratch<Bf16Pairs, Bfloat16>;
  kernels.backward = &tiled_backward<Bf16Pairs, Bfloat16>;
  return kernels;
}

template <class Product, class T, Dtype kDtype>
constexpr HeadKernels split_kernels() {
  HeadKernels kernels = head_kernels<Product, T>();
  kernels.forward = &split_forward<Product, T, kDtype>;
  kernels.backward = &split_backward<Product, T, kDtype>;
  kernels.forward_scratch = &split_forward_scratch<Product, T, kDtype>;
  kernels.backward_scratch = &split_backward_scratch<Product, T, kDtype>;
  return kernels;
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
