// Element types of tensors, as they lie in memory.
#pragma once

#include <cstdint>

namespace mbt_fast::cpu {

enum Dtype : int { kFloat32, kBfloat16, kFloat16, kDtypes };

constexpr int64_t size_of(Dtype dtype) { return dtype == kFloat32 ? 4 : 2; }

// The element at an index, from the first one.
inline const void* at(Dtype dtype, const void* base, int64_t index) {
  return static_cast<const char*>(base) + index * size_of(dtype);
}
inline void* at(Dtype dtype, void* base, int64_t index) {
  return static_cast<char*>(base) + index * size_of(dtype);
}

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

}  // namespace mbt_fast::cpu
