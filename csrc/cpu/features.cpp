// Detection by cpuid and xgetbv (Intel SDM vol. 1, ch. 13 and 14; vol. 2, CPUID leaf 7).
#include "features.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdint>

namespace mbt_fast::cpu {
namespace {

#if defined(__x86_64__)

constexpr bool bit(uint32_t word, int position) { return (word >> position) & 1u; }

// State components that the operating system saves (XCR0).
constexpr uint64_t kAvxState = 0x6;       // SSE, AVX
constexpr uint64_t kAvx512State = 0xe6;   // ... and opmask, upper halves, upper registers
constexpr uint64_t kTileState = 0x60000;  // tile configuration, tile data

uint64_t enabled_state() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // <asm/prctl.h>, since Linux 5.16
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Features detect() {
  Features found;
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !bit(ecx, 27)) return found;  // OSXSAVE
  const bool fma_and_f16c = bit(ecx, 12) && bit(ecx, 29);
  const uint64_t state = enabled_state();
  const auto saves = [state](uint64_t mask) { return (state & mask) == mask; };

  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return found;
  found.avx2_fma = saves(kAvxState) && bit(ebx, 5) && fma_and_f16c;
  found.avx512 = found.avx2_fma && saves(kAvx512State) && bit(ebx, 16) && bit(ebx, 30) &&
                 bit(ebx, 17) && bit(ebx, 31);
  const bool tiles = saves(kTileState) && bit(edx, 24) && bit(edx, 22);
  if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) {
    found.avx512_bf16 = found.avx512 && bit(eax, 5);
  }
  found.amx_bf16 = found.avx512_bf16 && tiles && may_use_tiles();
  return found;
}

#else

Features detect() { return {}; }

#endif

}  // namespace

const Features& features() {
  static const Features found = detect();
  return found;
}

std::string cpu_vendor() {
#if defined(__x86_64__)
  uint32_t most = 0, words[3] = {0, 0, 0};  // of the name, in the order ebx, edx, ecx
  if (__get_cpuid(0, &most, &words[0], &words[2], &words[1])) {
    return std::string(reinterpret_cast<const char*>(words), sizeof words);
  }
#endif
  return "";
}

}  // namespace mbt_fast::cpu
