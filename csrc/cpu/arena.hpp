// A block of memory, cut into aligned pieces.
#pragma once

#include <cstdint>

#include "common.hpp"

namespace mbt_fast::cpu {

constexpr int64_t kAlignment = 64;  // a cache line, and the widest vector

// Hands out pieces of a block; with no block it only adds up what they need.
class Arena {
 public:
  MBT_FAST_INLINE explicit Arena(void* block) : block_(static_cast<char*>(block)) {}

  template <class T>
  MBT_FAST_INLINE T* take(int64_t count) {
    char* piece = block_ ? block_ + used_ : nullptr;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment);
    return reinterpret_cast<T*>(piece);
  }
  MBT_FAST_INLINE int64_t used() const { return used_; }

 private:
  char* block_;
  int64_t used_ = 0;
};

}  // namespace mbt_fast::cpu
