// Matrix operands of wgmma in shared memory, all with the 128-byte swizzle.
//
// A panel is what one TMA box of 64 columns leaves: rows of 128 bytes, one after the other, whose
// eight 16-byte chunks are permuted by the row number modulo 8. Panels begin at multiples of 1024.
// A matrix of 128 columns is two panels, one behind the other.
//
//   major kK    the panel's columns are the dimension that the product sums over
//   major kMN   its rows are
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MBT_BOTH __host__ __device__
#else
#define MBT_BOTH
#endif

namespace mbt_fast::cuda {

enum class Major { kK = 0, kMN = 1 };

constexpr uint32_t kPanelColumns = 64;
constexpr uint32_t kPanelRowBytes = 128;
constexpr uint32_t kSwizzleBytes = 1024;  // eight rows; the pattern repeats
constexpr uint32_t kStep = 16;            // of the summed dimension, per instruction

// Address bits 0-13, leading offset 16-29, stride offset 32-45, all in 16 bytes; swizzle 62-63.
MBT_BOTH constexpr uint64_t matrix_descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  constexpr uint64_t kSwizzle128 = 1;
  return (uint64_t{(address & 0x3ffff) >> 4}) | (uint64_t{leading >> 4} << 16) |
         (uint64_t{stride >> 4} << 32) | (kSwizzle128 << 62);
}

// The part of an operand that instruction number `step` along the summed dimension reads.
// kK: row 0 of the operand is at `panels`; `rows` are those of a panel, to find the next one.
template <Major kMajor>
MBT_BOTH constexpr uint64_t operand(uint32_t panels, uint32_t rows, int step) {
  const uint32_t panel_bytes = rows * kPanelRowBytes;
  if (kMajor == Major::kK) {
    constexpr int kSteps = kPanelColumns / kStep;
    const uint32_t address = panels + step / kSteps * panel_bytes + step % kSteps * kStep * 2;
    return matrix_descriptor(address, 16, kSwizzleBytes);
  }
  return matrix_descriptor(panels + step * kStep * kPanelRowBytes, panel_bytes, kSwizzleBytes);
}

// Where a panel's 16-byte chunk lies, relative to the panel.
MBT_BOTH constexpr uint32_t swizzled(uint32_t row, uint32_t chunk) {
  return row * kPanelRowBytes + ((chunk ^ (row % 8)) * 16);
}

}  // namespace mbt_fast::cuda
