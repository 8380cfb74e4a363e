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

// Lower half: address in bits 0-13, leading offset in 16-29. Upper half: stride offset in 0-13,
// swizzle in 30-31. Addresses and offsets in units of 16 bytes.
MBT_BOTH constexpr uint64_t matrix_descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  constexpr uint32_t kSwizzle128 = 1;
  const uint32_t lower = address >> 4 | leading >> 4 << 16;
  const uint32_t upper = stride >> 4 | kSwizzle128 << 30;
  return uint64_t{upper} << 32 | lower;
}

// Moves the start of what a descriptor describes. Only the lower half takes part, for shared memory
// ends long before an address has more than 14 bits: so the sum is one instruction.
MBT_BOTH constexpr uint64_t advanced(uint64_t descriptor, uint32_t bytes) {
  const uint32_t lower = static_cast<uint32_t>(descriptor) + (bytes >> 4);
  return descriptor >> 32 << 32 | lower;
}

// The part of an operand that instruction number `step` along the summed dimension reads.
// kK: row 0 of the operand is at `panels`; `rows` are those of a panel, to find the next one.
// The step is added last, so that all steps share the descriptor of the first.
template <Major kMajor>
MBT_BOTH constexpr uint64_t operand(uint32_t panels, uint32_t rows, int step) {
  const uint32_t panel_bytes = rows * kPanelRowBytes;
  if (kMajor == Major::kK) {
    constexpr int kSteps = kPanelColumns / kStep;
    return advanced(matrix_descriptor(panels, 16, kSwizzleBytes),
                    step / kSteps * panel_bytes + step % kSteps * kStep * 2);
  }
  return advanced(matrix_descriptor(panels, panel_bytes, kSwizzleBytes),
                  step * kStep * kPanelRowBytes);
}

// Where a panel's 16-byte chunk lies, relative to the panel.
MBT_BOTH constexpr uint32_t swizzled(uint32_t row, uint32_t chunk) {
  return row * kPanelRowBytes + ((chunk ^ (row % 8)) * 16);
}

}  // namespace mbt_fast::cuda
