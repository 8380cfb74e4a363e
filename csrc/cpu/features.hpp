// What this x86-64 CPU and its operating system let a kernel use.
#pragma once

#include <string>

namespace mbt_fast::cpu {

// One flag per instruction set that a kernel may be built for. All false on other architectures.
struct Features {
  bool avx2_fma = false;     // AVX2, FMA and F16C
  bool avx512 = false;       // these and AVX-512 F, BW, DQ and VL
  bool avx512_bf16 = false;  // dot products of bfloat16 pairs
  bool amx_bf16 = false;     // these and tiles of bfloat16, and the permission to use them
};

// Detected once per process. The first call asks the kernel for permission to use AMX tiles: Linux
// grants their state per process and on request, so the answer, not cpuid, decides.
const Features& features();

// Who made the CPU, in cpuid's words, such as "AuthenticAMD"; empty on other architectures.
std::string cpu_vendor();

}  // namespace mbt_fast::cpu
