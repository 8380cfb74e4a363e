// Backward of one head in a single pass: packed dq, dk, dv from five products per block.
//
// Notation as in the forward; delta = rowsum(dout * out) - dlse. Key blocks outside, query blocks
// inside; scores stay transposed, queries are lanes:
//
//   s^T  = k q^T            p^T  = exp2(scale * s^T - shift - log2_sum)
//   dp^T = v dout^T         ds^T = p^T * (dp^T - delta)
//   dv  += p^T dout         dk  += ds^T q         dq^T += k^T ds^T       (dq, dk: times scale)
//
//                  query blocks ->
//                +------+------+---
//     one block  | s^T, p^T, .. |    dk, dv of the block stay in cache and are written once;
//     of keys    +------+------+---  dq^T of all queries is added to, block by block, in order
//
// Invariants.
// - Every element is summed by one thread in one order: no atomics, bitwise repeatable.
// - Lanes beyond the last query get p = 0, whatever they met: a key with an infinity makes NaN of
//   their zeros. Rows beyond the last key are not computed, or not read.
// - Where there is one key, softmax is constant and its gradient exactly 0, not the rounding of
//   dp - rowsum(dout * out).
// - In float32, where one key holds more than half of a row's probability, dp - delta cancels, and
//   delta from the rounded output would leave its rounding. There delta is summed from the very
//   products it is subtracted from, as eager PyTorch does, for two more products per block.
#pragma once

#include "bottleneck_attention_fwd.hpp"

namespace mbt_fast::cpu::MBT_FAST_ISA {

template <class Product>
struct BackwardBuffers {
  // Per block of queries: q^T and dout^T [D words][kQueries], q and dout [kQueries words][D].
  uint32_t *q_t, *dout_t, *q, *dout;
  float *shift, *log2_sum, *delta;  // of all queries
  float* dq_t;                      // per block of queries [D][kQueries]
  // One block of keys: k, v [kKeys][D words], k^T [D][kKeys words], dk, dv [kKeys][D].
  uint32_t *k, *v, *k_t;
  float *dk, *dv;
  // One block of both: s, dp [kKeys][kQueries] float32; p, ds [kKeys][kQueries words] as left
  // operands, of float32 in the place of s and dp; and ds [kKeys words][kQueries] as a right one.
  float *s, *dp;
  uint32_t *p, *ds, *ds_across;
  uint32_t* rows;  // rows on their way to be transposed, and dq on its way out

  BackwardBuffers(Arena& arena, int64_t count, int64_t dim) {
    const int64_t width = row_words<Product>(dim), lanes = round_up(dim, kLanes);
    const int64_t queries = round_up(count, kQueries), keys = words<Product>(kKeys);
    q_t = arena.take<uint32_t>(queries * width);
    dout_t = arena.take<uint32_t>(queries * width);
    q = arena.take<uint32_t>(words<Product>(queries) * lanes);
    dout = arena.take<uint32_t>(words<Product>(queries) * lanes);
    shift = arena.take<float>(queries);
    log2_sum = arena.take<float>(queries);
    delta = arena.take<float>(queries);
    dq_t = arena.take<float>(queries * lanes);
    k = arena.take<uint32_t>(kKeys * width);
    v = arena.take<uint32_t>(kKeys * width);
    k_t = arena.take<uint32_t>(lanes * keys);
    dk = arena.take<float>(kKeys * lanes);
    dv = arena.take<float>(kKeys * lanes);
    s = arena.take<float>(kKeys * kQueries);
    dp = arena.take<float>(kKeys * kQueries);
    p = place_of_p<Product>(arena, s, kKeys * words<Product>(kQueries));
    ds = place_of_p<Product>(arena, dp, kKeys * words<Product>(kQueries));
    ds_across = arena.take<uint32_t>(keys * kQueries);
    rows = arena.take<uint32_t>(larger(kQueries * larger(width, lanes), keys * lanes));
  }
};

template <class Product, class T>
int64_t bottleneck_attention_bwd_scratch(int64_t count, int64_t dim) {
  Arena arena(nullptr);
  BackwardBuffers<Product>(arena, count, dim);
  return arena.used();
}

// 0 where softmax has one key, and so no choice.
inline float choice(const Head& h) { return h.count > 1 ? 1.0f : 0.0f; }

// rowsum(dout * out) of one row
template <class T>
inline float dot(const T* a, const T* b, int64_t dim) {
  Floats sum = zeros();
  for (int64_t d = 0; d < dim; d += kLanes) {
    sum = fma(load_elements(a + d, dim - d), load_elements(b + d, dim - d), sum);
  }
  return sum_lanes(sum);
}

// The queries' side of one head, which every block of keys reads.
template <class Product, class T>
class Queries {
 public:
  Queries(const HeadBackward& h, const BackwardBuffers<Product>& b)
      : h_(h), b_(b), width_(row_words<Product>(h.dim)), lanes_(round_up(h.dim, kLanes)) {}

  Right q_t(int64_t first) const { return {b_.q_t + first * width_, kQueries}; }
  Right dout_t(int64_t first) const { return {b_.dout_t + first * width_, kQueries}; }
  Right q(int64_t first) const { return {b_.q + words<Product>(first) * lanes_, lanes_}; }
  Right dout(int64_t first) const { return {b_.dout + words<Product>(first) * lanes_, lanes_}; }
  Result dq_t(int64_t first) const { return {b_.dq_t + first * lanes_, kQueries}; }

  void pack() const {
    const RowsOf<T> q{h_.q, h_.own, h_.count}, dout{h_.dout, h_.own, h_.count};
    for (int64_t first = 0; first < h_.count; first += kQueries) {
      pack_both_ways(q, first, b_.q_t + first * width_, b_.q + words<Product>(first) * lanes_);
      scale_queries<Product>(b_.q_t + first * width_, h_.dim, h_.scale * kLog2E);
      pack_both_ways(dout, first, b_.dout_t + first * width_,
                     b_.dout + words<Product>(first) * lanes_);
    }
    const int64_t all = round_up(h_.count, kQueries);
    for (int64_t i = 0; i < all * lanes_; ++i) b_.dq_t[i] = 0;
    pack_statistics(dout, all);
  }

  void store_dq() const {
    const RowsOf<T> dq = writable<T>(h_.dq, h_.own, h_.count);
    float* rows = reinterpret_cast<float*>(b_.rows);
    for (int64_t first = 0; first < h_.count; first += kQueries) {
      const int64_t queries = smaller(kQueries, h_.count - first);
      transpose_words(reinterpret_cast<const uint32_t*>(b_.dq_t + first * lanes_), kQueries, lanes_,
                      round_up(queries, kLanes), b_.rows, lanes_, queries);
      for (int64_t i = 0; i < queries; ++i) {
        store_row(const_cast<T*>(dq[first + i]), rows + i * lanes_, h_.dim, splat(h_.scale));
      }
    }
  }

 private:
  void pack_both_ways(RowsOf<T> x, int64_t first, uint32_t* across_rows, uint32_t* across_d) const {
    pack_along_d<Product>(x, first, kQueries, h_.dim, b_.rows);
    transpose_words(b_.rows, width_, kQueries, width_, across_rows, kQueries,
                    words<Product>(h_.dim));
    pack_across_d<Product>(x, first, kQueries, h_.dim, across_d);
  }

  void pack_statistics(RowsOf<T> dout, int64_t all) const {
    const RowsOf<T> out{h_.out, h_.own, h_.count};
    for (int64_t i = 0; i < h_.count; ++i) {
      const int64_t row = h_.row_of(i);
      b_.shift[i] = h_.shift[row];
      b_.log2_sum[i] = h_.log2_sum[row];
      b_.delta[i] = choice(h_) * dot(dout[i], out[i], h_.dim) - (h_.dlse ? h_.dlse[row] : 0.0f);
    }
    for (int64_t i = h_.count; i < all; ++i) b_.shift[i] = b_.log2_sum[i] = b_.delta[i] = 0;
  }

  const HeadBackward& h_;
  const BackwardBuffers<Product>& b_;
  const int64_t width_, lanes_;
};

// One block of keys: what it reads, and the gradients it owns.
template <class Product, class T>
class Keys {
 public:
  Keys(const HeadBackward& h, const BackwardBuffers<Product>& b)
      : h_(h), b_(b), width_(row_words<Product>(h.dim)), lanes_(round_up(h.dim, kLanes)) {}

  Left k() const { return {b_.k, width_}; }
  Left v() const { return {b_.v, width_}; }
  Left k_t() const { return {b_.k_t, words<Product>(kKeys)}; }
  Result dk() const { return {b_.dk, lanes_}; }
  Result dv() const { return {b_.dv, lanes_}; }

  void pack(int64_t first) const {
    const RowsOf<T> k{h_.k, h_.own, h_.count}, v{h_.v, h_.own, h_.count};
    pack_along_d<Product>(k, first, kKeys, h_.dim, b_.k);
    pack_along_d<Product>(v, first, kKeys, h_.dim, b_.v);
    pack_along_rows<Product>(k, first, h_.dim, b_.rows, b_.k_t);
    for (int64_t i = 0; i < kKeys * lanes_; ++i) b_.dk[i] = b_.dv[i] = 0;
  }

  void store(int64_t first, int64_t keys) const {
    const RowsOf<T> dk = writable<T>(h_.dk, h_.own, h_.count);
    const RowsOf<T> dv = writable<T>(h_.dv, h_.own, h_.count);
    for (int64_t i = 0; i < keys; ++i) {
      store_row(const_cast<T*>(dk[first + i]), b_.dk + i * lanes_, h_.dim, splat(h_.scale));
      store_row(const_cast<T*>(dv[first + i]), b_.dv + i * lanes_, h_.dim, splat(1.0f));
    }
  }

 private:
  const HeadBackward& h_;
  const BackwardBuffers<Product>& b_;
  const int64_t width_, lanes_;
};

// p and ds of one vector of queries and one key.
struct Gradients {
  Floats p, ds;
};
struct SoftmaxOf {  // what is constant along the keys
  Floats scale, shift, log2_sum, delta, choice;
  int64_t lanes;  // with a query; or more

  template <class Product>
  MBT_FAST_INLINE Floats probabilities(const float* s) const {
    const Floats x = sub(sub(scaled<Product>(s, scale), shift), log2_sum);
    return keep_first(exp2<Product::kExpDegree>(x), lanes);
  }
  template <class Product>
  MBT_FAST_INLINE Gradients gradients(const float* s, const float* dp) const {
    const Floats p = probabilities<Product>(s);
    return {p, mul(p, fms(load(dp), choice, delta))};
  }
};

template <class Product>
inline SoftmaxOf softmax_of(const BackwardBuffers<Product>& b, const HeadBackward& h,
                            int64_t query) {
  return {splat(h.scale * kLog2E), load(b.shift + query), load(b.log2_sum + query),
          load(b.delta + query),   splat(choice(h)),      h.count - query};
}

// Scores and dp of a block become p and ds, in the layouts that the last three products need.
template <class Product>
inline void differentiate(const BackwardBuffers<Product>& b, const HeadBackward& h, int64_t query,
                          int64_t keys, int64_t vectors) {
  constexpr int64_t kStride = words<Product>(kQueries);  // of p and ds as left operands
  constexpr int64_t kApart = words<Product>(kKeys) / Product::kParts * kQueries;
  for (int64_t lane = 0; lane < vectors * kLanes; lane += kLanes) {
    const SoftmaxOf softmax = softmax_of(b, h, query + lane);
    const int64_t at = lane / Product::kDepth;
    if constexpr (Product::kDepth == 1) {
      for (int64_t key = 0; key < keys; ++key) {
        const int64_t score = key * kQueries + lane;
        const Gradients g = softmax.gradients<Product>(b.s + score, b.dp + score);
        store_words(b.p + key * kStride + at, as_words(g.p));
        store_words(b.ds + key * kStride + at, as_words(g.ds));
      }
    } else {
      for (int64_t key = 0; key < keys; key += 2) {
        const int64_t score = key * kQueries + lane, next = score + kQueries;
        const Gradients x = softmax.gradients<Product>(b.s + score, b.dp + score);
        const Gradients y = key + 1 < keys
                                ? softmax.gradients<Product>(b.s + next, b.dp + next)
                                : Gradients{zeros(), zeros()};
        const auto ds = Product::narrow(x.ds, y.ds);
        Product::store_rows(Product::narrow(x.p, y.p), b.p + key * kStride + at, kStride);
        Product::store_rows(ds, b.ds + key * kStride + at, kStride);
        store_parts(b.ds_across + key / 2 * kQueries + lane, kApart, Product::pair(ds));
      }
      pad_steps<Product>(b.ds_across + lane, kApart, keys, kQueries);
    }
  }
}

// Row sums of p * dp replace rowsum(dout * out) in blocks of queries where they are needed.
template <class Product, class T>
inline void refine_delta(const HeadBackward& h, const BackwardBuffers<Product>& b,
                         const Queries<Product, T>& queries, const Keys<Product, T>& block) {
  const int64_t steps = words<Product>(h.dim);
  const auto is_peaked = [&](int64_t first) {
    for (int64_t i = first; i < smaller(first + kQueries, h.count); ++i) {
      if (b.log2_sum[i] < 1.0f) return true;  // the largest probability exceeds one half
    }
    return false;
  };
  const auto start = [&](int64_t query) {
    for (int64_t i = query; i < smaller(query + kQueries, h.count); ++i) {
      b.delta[i] = h.dlse ? -h.dlse[h.row_of(i)] : 0.0f;
    }
  };
  for (int64_t key = 0; key < h.count; key += kKeys) {
    const int64_t keys = smaller(kKeys, h.count - key);
    bool is_packed = false;
    for (int64_t query = 0; query < h.count; query += kQueries) {
      if (!is_peaked(query)) continue;
      if (key == 0) start(query);
      if (!is_packed) block.pack(key);
      is_packed = true;
      multiply<Product, false>(block.k(), queries.q_t(query), {b.s, kQueries}, keys, kQueryVectors,
                               steps);
      multiply<Product, false>(block.v(), queries.dout_t(query), {b.dp, kQueries}, keys,
                               kQueryVectors, steps);
      for (int64_t lane = 0; lane < kQueries; lane += kLanes) {
        const SoftmaxOf softmax = softmax_of(b, h, query + lane);
        Floats sum = load(b.delta + query + lane);
        for (int64_t i = 0; i < keys; ++i) {
          const Floats p = softmax.probabilities<Product>(b.s + i * kQueries + lane);
          sum = fma(p, load(b.dp + i * kQueries + lane), sum);
        }
        store(b.delta + query + lane, sum);
      }
    }
  }
}

template <class Product, class T>
void bottleneck_attention_bwd(const HeadBackward& h, void* scratch) {
  Arena arena(scratch);
  const BackwardBuffers<Product> b(arena, h.count, h.dim);
  const Queries<Product, T> queries(h, b);
  const Keys<Product, T> block(h, b);
  const int64_t steps = words<Product>(h.dim), d_vectors = ceil_div(h.dim, kLanes);
  constexpr int64_t kStride = words<Product>(kQueries);
  const Right ds_across{Product::kDepth == 1 ? b.ds : b.ds_across, kQueries};
  queries.pack();
  if (Product::kRefinesDelta && h.count > 1) refine_delta(h, b, queries, block);
  for (int64_t key = 0; key < h.count; key += kKeys) {
    const int64_t keys = smaller(kKeys, h.count - key);
    block.pack(key);
    for (int64_t query = 0; query < h.count; query += kQueries) {
      const int64_t whole = round_up(h.count - query, kStepsAtOnce * Product::kDepth);
      const int64_t vectors = smaller(kQueryVectors, ceil_div(whole, kLanes));
      const int64_t query_steps = words<Product>(vectors * kLanes);
      const Result s{b.s, kQueries}, dp{b.dp, kQueries};
      multiply<Product, false>(block.k(), queries.q_t(query), s, keys, vectors, steps);
      multiply<Product, false>(block.v(), queries.dout_t(query), dp, keys, vectors, steps);
      differentiate(b, h, query, keys, vectors);
      multiply<Product, true>({b.p, kStride}, queries.dout(query), block.dv(), keys, d_vectors,
                              query_steps);
      multiply<Product, true>({b.ds, kStride}, queries.q(query), block.dk(), keys, d_vectors,
                              query_steps);
      multiply<Product, true>(block.k_t(), ds_across, queries.dq_t(query), h.dim, vectors,
                              words<Product>(keys));
    }
    block.store(key, keys);
  }
  queries.store_dq();
}

}  // namespace mbt_fast::cpu::MBT_FAST_ISA
