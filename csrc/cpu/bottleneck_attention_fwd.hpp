// Forward of one head: out = softmax(scale * q k^T) v, block by block, by transposed scores.
//
// Notation: s = q k^T, p = the shifted exponentials, o = out before the division by their sum.
// Queries are the lanes of vectors, so that maximum, shift and sum of a softmax are vertical:
//
//                   queries (kQueries)
//                  +--------+                             +--------+
//                  |  q^T   | D                           |   p^T  | keys
//                  +--------+                             +--------+
//        D                                     keys
//      +---+       +--------+                +------+     +--------+
//  keys| k | times | s^T    |  softmax p^T  D| v^T  | times  o^T   | D   += over all key blocks
//      +---+       +--------+                +------+     +--------+
//
// Invariants.
// - k and v are packed once per head, q once per block of queries; both products then read
//   contiguous words. Rows of a packed stream would touch another page each.
// - The shift is the running maximum: exponentials are at most 1, whatever the scores. When it
//   grows, o and the sums are scaled down. The scaled score is rounded before the shift is taken
//   off, as it was when the maximum was taken; fused, the difference could exceed 0 by the rounding
//   of the maximum, which at scores of 1e12 is 2^17.
// - Every query sees the same blocks of keys in the same order, whoever computes it: results do not
//   depend on the number of threads.
#pragma once

#include "arena.hpp"
#include "simd/exp2.hpp"
#include "simd/pack.hpp"
#include "simd/products.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

constexpr int64_t kQueries = kQueryVectors * kLanes;
constexpr float kLowest = -3.402823466e38f;

// Words of p or ds: float32 replaces the scores one by one.
template <class Product>
inline uint32_t* place_of_p(Arena& arena, float* scores, int64_t size) {
  return Product::kDepth == 1 ? reinterpret_cast<uint32_t*>(scores) : arena.take<uint32_t>(size);
}

template <class Product>
struct ForwardBuffers {
  uint32_t *k, *v;     // all blocks: [keys][D words], [D][kKeys words]
  uint32_t *q, *q_t;   // one block: [kQueries][D words] and its transpose
  uint32_t* rows;      // rows of v on their way to be transposed: [kKeys words][D]
  uint32_t *p;         // [kKeys words][kQueries]; of float32 in the place of s
  float *s, *o, *out;  // [kKeys][kQueries], [D][kQueries], [kQueries][D]
  float *shift, *sum;  // [kQueries]

  ForwardBuffers(Arena& arena, int64_t count, int64_t dim) {
    const int64_t blocks = ceil_div(count, kKeys), width = row_words<Product>(dim);
    const int64_t lanes = round_up(dim, kLanes);
    k = arena.take<uint32_t>(blocks * kKeys * width);
    v = arena.take<uint32_t>(blocks * lanes * words<Product>(kKeys));
    q = arena.take<uint32_t>(kQueries * width);
    q_t = arena.take<uint32_t>(width * kQueries);
    rows = arena.take<uint32_t>(words<Product>(kKeys) * lanes);
    s = arena.take<float>(kKeys * kQueries);
    p = place_of_p<Product>(arena, s, words<Product>(kKeys) * kQueries);
    o = arena.take<float>(lanes * kQueries);
    out = arena.take<float>(kQueries * lanes);
    shift = arena.take<float>(kQueries);
    sum = arena.take<float>(kQueries);
  }
};

template <class Product, class T>
int64_t bottleneck_attention_fwd_scratch(int64_t count, int64_t dim) {
  Arena arena(nullptr);
  ForwardBuffers<Product>(arena, count, dim);
  return arena.used();
}

// v as left operand of o^T = v^T p^T: to[d][words of kKeys], by way of [keys][D] in `temporary`.
template <class Product, class T>
inline void pack_along_rows(RowsOf<T> x, int64_t first, int64_t dim, uint32_t* temporary,
                            uint32_t* to) {
  const int64_t lanes = round_up(dim, kLanes), steps = words<Product>(kKeys);
  pack_across_d<Product>(x, first, kKeys, dim, temporary);
  transpose_words(temporary, lanes, steps, lanes, to, steps, lanes);
}

// Float32 queries take the scale along into their products; bfloat16 would round it.
template <class Product>
inline void scale_queries(uint32_t* q_t, int64_t dim, float scale) {
  if constexpr (Product::kScalesQueries) {
    for (int64_t i = 0; i < words<Product>(dim) * kQueries; i += kLanes) {
      store_words(q_t + i, as_words(mul(as_floats(load_words(q_t + i)), splat(scale))));
    }
  }
}

// Scores in units of log2.
template <class Product>
MBT_FAST_INLINE Floats scaled(const float* s, Floats scale) {
  return Product::kScalesQueries ? load(s) : mul(load(s), scale);
}

template <class Product>
MBT_FAST_INLINE Floats exponential(const float* s, Floats scale, Floats shift) {
  return exp2<Product::kExpDegree>(sub(scaled<Product>(s, scale), shift));
}

// p^T = exp2(scale * s^T - shift) for one vector of queries, and its sum over the keys.
template <class Product>
inline Floats exponentials(const float* s, int64_t keys, Floats scale, Floats shift, uint32_t* p) {
  constexpr int64_t kApart = words<Product>(kKeys) / Product::kParts * kQueries;
  Floats sum = zeros();
  for (int64_t key = 0; key < keys; key += 2) {
    const float* at = s + key * kQueries;
    const Floats x = exponential<Product>(at, scale, shift);
    const Floats y = key + 1 < keys ? exponential<Product>(at + kQueries, scale, shift) : zeros();
    sum = add(sum, add(x, y));
    if constexpr (Product::kDepth == 1) {
      store_words(p + key * kQueries, as_words(x));
      store_words(p + (key + 1) * kQueries, as_words(y));
    } else {
      store_parts(p + key / 2 * kQueries, kApart, Product::pair(Product::narrow(x, y)));
    }
  }
  pad_steps<Product>(p, kApart, keys, kQueries);
  return sum;
}

// The largest score of each query in one vector, if it exceeds `least`. Four at a time, because each
// waits for the one before.
template <class Product>
inline Floats maximum(const float* s, int64_t keys, Floats scale, Floats least) {
  constexpr int kChains = 4;
  Floats most[kChains];
  for (Floats& one : most) one = least;
  int64_t key = 0;
  for (; key + kChains <= keys; key += kChains) {
    for (int i = 0; i < kChains; ++i) {
      most[i] = max(most[i], scaled<Product>(s + (key + i) * kQueries, scale));
    }
  }
  for (; key < keys; ++key) most[0] = max(most[0], scaled<Product>(s + key * kQueries, scale));
  return max(max(most[0], most[1]), max(most[2], most[3]));
}

// One block of scores becomes exponentials; where the maximum grows, o and sum are scaled down.
template <class Product>
inline void softmax(const ForwardBuffers<Product>& b, int64_t keys, int64_t vectors, float factor,
                    int64_t dim) {
  const Floats scale = splat(factor);
  for (int64_t lane = 0; lane < vectors * kLanes; lane += kLanes) {
    const Floats before = load(b.shift + lane);
    const Floats shift = maximum<Product>(b.s + lane, keys, scale, before);
    Floats sum = load(b.sum + lane);
    if (any_greater(shift, before)) {
      const Floats shrink = exp2<6>(sub(before, shift));
      sum = mul(sum, shrink);
      store(b.shift + lane, shift);
      for (int64_t d = 0; d < dim; ++d) {
        float* o = b.o + d * kQueries + lane;
        store(o, mul(load(o), shrink));
      }
    }
    const Floats more =
        exponentials<Product>(b.s + lane, keys, scale, load(b.shift + lane), b.p + lane);
    store(b.sum + lane, add(sum, more));
  }
}

template <class Product, class T>
inline void store_results(const HeadForward& h, const ForwardBuffers<Product>& b, int64_t first,
                          int64_t queries) {
  const int64_t lanes = round_up(h.dim, kLanes);
  transpose_words(reinterpret_cast<const uint32_t*>(b.o), kQueries, lanes, round_up(queries, kLanes),
                  reinterpret_cast<uint32_t*>(b.out), lanes, queries);
  const RowsOf<T> out = writable<T>(h.out, h.own, h.count);
  for (int64_t i = 0; i < queries; ++i) {
    const float sum = b.sum[i], log2_sum = __builtin_log2f(sum);
    const int64_t row = h.row_of(first + i);
    h.shift[row] = b.shift[i];
    h.log2_sum[row] = log2_sum;
    h.lse[row] = (b.shift[i] + log2_sum) * kLn2;
    store_row(const_cast<T*>(out[first + i]), b.out + i * lanes, h.dim, splat(1.0f / sum));
  }
}

template <class Product, class T>
inline void pack_keys_and_values(const HeadForward& h, const ForwardBuffers<Product>& b) {
  const RowsOf<T> k{h.k, h.own, h.count}, v{h.v, h.own, h.count};
  const int64_t width = row_words<Product>(h.dim), lanes = round_up(h.dim, kLanes);
  for (int64_t key = 0, block = 0; key < h.count; key += kKeys, ++block) {
    pack_along_d<Product>(k, key, kKeys, h.dim, b.k + key * width);
    pack_along_rows<Product>(v, key, h.dim, b.rows, b.v + block * lanes * words<Product>(kKeys));
  }
}

template <class Product, class T>
inline void start_queries(const HeadForward& h, const ForwardBuffers<Product>& b, int64_t first) {
  const RowsOf<T> q{h.q, h.own, h.count};
  const int64_t width = row_words<Product>(h.dim), lanes = round_up(h.dim, kLanes);
  pack_along_d<Product>(q, first, kQueries, h.dim, b.q);
  transpose_words(b.q, width, kQueries, width, b.q_t, kQueries, words<Product>(h.dim));
  scale_queries<Product>(b.q_t, h.dim, h.scale * kLog2E);
  for (int64_t i = 0; i < kQueries; ++i) b.shift[i] = kLowest, b.sum[i] = 0;
  for (int64_t i = 0; i < lanes * kQueries; ++i) b.o[i] = 0;
}

template <class Product, class T>
void bottleneck_attention_fwd(const HeadForward& h, void* scratch) {
  Arena arena(scratch);
  const ForwardBuffers<Product> b(arena, h.count, h.dim);
  const int64_t width = row_words<Product>(h.dim), steps = words<Product>(h.dim);
  const int64_t key_words = words<Product>(kKeys), lanes = round_up(h.dim, kLanes);
  pack_keys_and_values<Product, T>(h, b);
  for (int64_t first = h.first; first < h.last; first += kQueries) {
    const int64_t queries = smaller(kQueries, h.last - first), vectors = ceil_div(queries, kLanes);
    start_queries<Product, T>(h, b, first);
    for (int64_t key = 0, block = 0; key < h.count; key += kKeys, ++block) {
      const int64_t keys = smaller(kKeys, h.count - key);
      multiply<Product, false>({b.k + key * width, width}, {b.q_t, kQueries}, {b.s, kQueries}, keys,
                               vectors, steps);
      softmax(b, keys, vectors, h.scale * kLog2E, h.dim);
      multiply<Product, true>({b.v + block * lanes * key_words, key_words}, {b.p, kQueries},
                              {b.o, kQueries}, h.dim, vectors, words<Product>(keys));
    }
    store_results<Product, T>(h, b, first, queries);
  }
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
