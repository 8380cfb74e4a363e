// Softmax of the two rows of which a thread holds a part, as scores come tile by tile.
//
// The four threads of a quad share a row. exp2 of fma(score, scale, -shift), with shift the rounded
// product of maximum and scale: its error is a factor that all terms of a row have in common, and the
// statistics that are kept for the backward hold the same shift.
#pragma once

#include <math.h>

#include "hopper.cuh"

namespace mbt_fast::cuda {

struct Softmax {
  float maximum[2], shift[2], sum[2];  // of scores; of scores in units of log2; this thread's part

  // The first tile; there is a valid key in it.
  template <int kCount>
  MBT_DEVICE void start(float (&scores)[kCount], float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      maximum[half] = -INFINITY;
      sum[half] = 0;
      add(scores, scale, half);
    }
  }

  // Another tile. factors: what earlier sums of values are to be multiplied by.
  template <int kCount>
  MBT_DEVICE void advance(float (&scores)[kCount], float scale, float (&factors)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float before = shift[half], part = sum[half];
      sum[half] = 0;
      add(scores, scale, half);
      factors[half] = exp2_approx(before - shift[half]);
      sum[half] += part * factors[half];
    }
  }

  MBT_DEVICE float whole_sum(int half) const {
    const float pair = sum[half] + shuffle_xor(sum[half], 1);
    return pair + shuffle_xor(pair, 2);
  }

 private:
  // Scores become exp2(score * scale - shift).
  template <int kCount>
  MBT_DEVICE void add(float (&scores)[kCount], float scale, int half) {
#pragma unroll
    for (int i = 2 * half; i < kCount; i += 4)
      maximum[half] = fmaxf(maximum[half], fmaxf(scores[i], scores[i + 1]));
    maximum[half] = fmaxf(maximum[half], shuffle_xor(maximum[half], 1));
    maximum[half] = fmaxf(maximum[half], shuffle_xor(maximum[half], 2));
    shift[half] = maximum[half] * scale;
#pragma unroll
    for (int i = 2 * half; i < kCount; i += 4) {
      scores[i] = exp2_approx(fmaf(scores[i], scale, -shift[half]));
      scores[i + 1] = exp2_approx(fmaf(scores[i + 1], scale, -shift[half]));
      sum[half] += scores[i] + scores[i + 1];
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
