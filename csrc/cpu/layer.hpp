// The layer around attention, row by row: what an instruction set offers for one dtype.
#pragma once

#include <cstdint>

namespace mbt_fast::cpu {

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
  void (*gelu[kApproximates])(const void* x, const float* bias, int64_t count, void* out);
  // dx = dout * gelu'(x + bias); added to dbias too, unless that is none
  void (*gelu_gradient[kApproximates])(const void* x, const float* bias, const void* dout,
                                       int64_t count, void* dx, float* dbias);
  void (*add)(const void* a, const void* b, int64_t count, void* sum);
  void (*normalize)(const NormRow&);
  void (*normalize_gradient)(const NormRowGradient&);
};

}  // namespace mbt_fast::cpu
