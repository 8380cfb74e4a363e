// Softmax of the two rows of which a thread holds a part, as scores come tile by tile.
//
// The four threads of a quad share a row. exp2 of fma(score, scale, -shift), with shift the rounded
// product of maximum and scale: its error is a factor that all terms of a row have in common, and
// the statistics that are kept for the backward hold the same shift.
//
// One exponential in kOneIn is computed by multiply-adds: with that number schedulers and special
// function units need about as many cycles.
#pragma once

#include <math.h>

#include "exp2.cuh"
#include "instructions.cuh"

namespace mbt_fast::cuda {

template <int kDim>
struct Softmax {
  static constexpr int kOneIn = kDim > 64 ? 20 : 10;

  float maximum[2], shift[2], sum[2];  // of scores; of scores in units of log2; this thread's part

  // The first tile; there is a valid key in it.
  template <int kCount>
  MBT_DEVICE void start(float (&scores)[kCount], float scale) {
    maximum[0] = maximum[1] = -INFINITY;
    sum[0] = sum[1] = 0;
    add<0>(scores, scale);
    add<1>(scores, scale);
  }

  // Another tile. factors: what earlier sums of values are to be multiplied by.
  template <int kCount>
  MBT_DEVICE void advance(float (&scores)[kCount], float scale, float (&factors)[2]) {
    advance_row<0>(scores, scale, factors[0]);
    advance_row<1>(scores, scale, factors[1]);
  }

  MBT_DEVICE float whole_sum(int half) const {
    const float pair = sum[half] + shuffle_xor(sum[half], 1);
    return pair + shuffle_xor(pair, 2);
  }

 private:
  template <int kHalf, int kCount>
  MBT_DEVICE void advance_row(float (&scores)[kCount], float scale, float& factor) {
    const float before = shift[kHalf], part = sum[kHalf];
    sum[kHalf] = 0;
    add<kHalf>(scores, scale);
    factor = exp2_approx(before - shift[kHalf]);
    sum[kHalf] += part * factor;
  }

  // Scores become exp2(score * scale - shift).
  template <int kHalf, int kCount>
  MBT_DEVICE void add(float (&scores)[kCount], float scale) {
    float top = maximum[kHalf];
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i)
      top = fmaxf(top, fmaxf(scores[4 * i + 2 * kHalf], scores[4 * i + 2 * kHalf + 1]));
    top = fmaxf(top, shuffle_xor(top, 1));
    top = fmaxf(top, shuffle_xor(top, 2));
    maximum[kHalf] = top;
    shift[kHalf] = top * scale;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      float& score = scores[i / 2 * 4 + kHalf * 2 + i % 2];
      const float power = fmaf(score, scale, -shift[kHalf]);
      score = i % kOneIn == kOneIn - 1 ? exp2_polynomial(power) : exp2_approx(power);
      sum[kHalf] += score;
    }
  }
};

// In the layout of the product's other operand, which is that of the scores.
template <class Element, int kCount>
MBT_DEVICE void to_probabilities(const float (&scores)[kCount],
                                 uint32_t (&probabilities)[kCount / 2]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i)
    probabilities[i] = pack<Element>(scores[2 * i], scores[2 * i + 1]);
}

template <int kCount>
MBT_DEVICE void rescale(float (&out)[kCount], const float (&factors)[2]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) out[i] *= factors[i / 2 % 2];
}

}  // namespace mbt_fast::cuda
