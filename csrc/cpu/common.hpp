// Small words that every kernel uses. No standard containers or algorithms in files that are compiled
// for one instruction set: the linker may keep such a copy of an inline function for everyone. What all
// files share is inlined by force, for the same reason.
#pragma once

#include <cstdint>

#define MBT_FAST_INLINE inline __attribute__((always_inline))
#define MBT_FAST_INLINE_LAMBDA __attribute__((always_inline))

namespace mbt_fast::cpu {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.69314718055994531f;

MBT_FAST_INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
MBT_FAST_INLINE constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
MBT_FAST_INLINE constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
MBT_FAST_INLINE constexpr int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

}  // namespace mbt_fast::cpu
