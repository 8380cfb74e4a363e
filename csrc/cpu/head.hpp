// One head of one example of one stream: the unit of work that a kernel gets, in plain pointers.
#pragma once

#include <cstdint>

#include "common.hpp"

namespace mbt_fast::cpu {

// The valid rows of a stream, numbered without the gap that padding leaves: own tokens, then slots.
// A row is D elements side by side. Slots are found apart, because they may lie elsewhere.
struct Rows {
  const void* own = nullptr;
  const void* slots = nullptr;
  int64_t stride = 0, slot_stride = 0;  // elements from row to row
};

// Rows that a kernel writes.
struct OutRows {
  void* own = nullptr;
  void* slots = nullptr;
  int64_t stride = 0, slot_stride = 0;
};

struct Head {
  int64_t own = 0;    // valid own tokens
  int64_t count = 0;  // valid rows: own tokens and slots; at least 1
  int64_t gap = 0;    // rows of padding between them, in arrays that are indexed by row
  int64_t dim = 0;    // D
  float scale = 0;
  Rows q, k, v;
  // Statistics of softmax, one per row: the shift of its exponents, in units of log2, and log2 of
  // the sum of the shifted exponentials. Apart they give back the probabilities of the forward;
  // their sum alone would cost digits where scores are large.
  float* shift = nullptr;
  float* log2_sum = nullptr;

  MBT_FAST_INLINE int64_t row_of(int64_t number) const { return number < own ? number : number + gap; }
};

struct HeadForward : Head {
  OutRows out;
  float* lse = nullptr;           // natural logarithm
  int64_t first = 0, last = 0;    // the queries to compute, by number; first is a multiple of the
};                                // kernel's block of queries

struct HeadBackward : Head {
  Rows out, dout;
  const float* dlse = nullptr;  // or none
  OutRows dq, dk, dv;
};

// What an instruction set offers for one dtype. Scratch comes from the caller, who knows the threads.
struct HeadKernels {
  void (*forward)(const HeadForward&, void* scratch);
  void (*backward)(const HeadBackward&, void* scratch);
  int64_t (*forward_scratch)(int64_t count, int64_t dim);  // bytes
  int64_t (*backward_scratch)(int64_t count, int64_t dim);
  int64_t query_block;  // a head may be split between queries at its multiples
  // to[d] = sum of `count` rows of D elements, in float32 in their order, over the divisor
  void (*divided_sum)(const void* const* rows, int64_t count, int64_t divisor, int64_t dim, void* to);
};

}  // namespace mbt_fast::cpu
