// Element types of tensors, as they lie in memory.
#pragma once

#include <cstdint>

namespace mbt_fast::cpu {

enum Dtype : int { kFloat32, kBfloat16, kFloat16, kDtypes };

constexpr int64_t size_of(Dtype dtype) { return dtype == kFloat32 ? 4 : 2; }

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

}  // namespace mbt_fast::cpu
