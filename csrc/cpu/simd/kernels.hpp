// What a kernel gets, in plain pointers, and the kernels that each instruction set has.
//
// Attention works head by head, the layer around it row by row. simd/<isa>.cpp defines the tables at
// the end of this file.
#pragma once

#include <cstdint>

#include "../common.hpp"
#include "../element.hpp"

namespace mbt_fast::cpu {

// Attention: one head of one example of one stream.

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

// The layer around attention: one row at a time.

enum Approximate : int { kNone, kTanh, kApproximates };  // of GELU, in torch's words

// Rows are C elements side by side; `x` is the row that is normalised.
struct NormRow {
  const void* x = nullptr;
  const float *weight = nullptr, *bias = nullptr;
  int64_t channels = 0;
  float eps = 0;
  void* out = nullptr;
  float *mean = nullptr, *rstd = nullptr;
};

struct NormRowGradient {
  const void *x = nullptr, *dout = nullptr;
  const void* dsum = nullptr;  // what else arrives at x, or none
  const float* weight = nullptr;
  int64_t channels = 0;
  float mean = 0, rstd = 0;
  void* dx = nullptr;
  float *dweight = nullptr, *dbias = nullptr;  // added to
};

struct LayerKernels {
  // out = gelu(x + bias), the bias or none
  void (*bias_gelu_fwd[kApproximates])(const void* x, const float* bias, int64_t count, void* out);
  // dx = dout * gelu'(x + bias); added to dbias too, unless that is none
  void (*bias_gelu_bwd[kApproximates])(const void* x, const float* bias, const void* dout,
                                       int64_t count, void* dx, float* dbias);
  void (*add)(const void* a, const void* b, int64_t count, void* sum);
  void (*layer_norm_fwd)(const NormRow&);
  void (*layer_norm_bwd)(const NormRowGradient&);
};

// The matrix products of a Linear, block by block.

// Rows of elements side by side.
struct Matrix {
  const void* data = nullptr;
  int64_t stride = 0;  // elements from row to row
};

// A block of a product: out [rows][columns], a sum over `depth`.
struct LinearBlock {
  Matrix left, right;
  int64_t rows = 0, columns = 0, depth = 0;
  const float* bias = nullptr;  // [columns], or none
  void* out = nullptr;
  int64_t out_stride = 0;
};

// One of the three products.
struct LinearProduct {
  void (*block)(const LinearBlock&, void* scratch);
  int64_t (*scratch)(int64_t rows, int64_t columns, int64_t depth);  // bytes
  int64_t columns;                                                   // of a block, at most
};

struct LinearKernels {
  LinearProduct forward;          // left [rows][depth], right [columns][depth]
  LinearProduct input_gradient;   // left [rows][depth], right [depth][columns]
  LinearProduct weight_gradient;  // left [depth][rows], right [depth][columns]
  int64_t panel;                  // blocks are cut at multiples of so many columns
  void (*sum_of_rows)(const Matrix& x, int64_t count, int64_t columns, float* sums);
};

extern const HeadKernels kAvx2[kDtypes];
extern const HeadKernels kAvx512[kDtypes];
extern const HeadKernels kAvx512Bfloat16;
extern const HeadKernels kAmx[kDtypes];
extern const HeadKernels kAmxEmulated[kDtypes];

extern const LayerKernels kAvx2Layer[kDtypes];
extern const LayerKernels kAvx512Layer[kDtypes];
extern const LayerKernels kAvx512Bfloat16Layer;

extern const LinearKernels kAvx2Linear[kDtypes];
extern const LinearKernels kAvx512Linear[kDtypes];
extern const LinearKernels kAvx512Bfloat16Linear;

}  // namespace mbt_fast::cpu
