// The table of the backend. A better instruction set takes what it has no kernels for from the next.
#include "instruction_sets.hpp"

namespace mbt_fast::cpu {

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = {
#if defined(__x86_64__)
      {"amx",
       &Features::amx_bf16,
       {&kAmx[0], &kAmx[1], &kAmx[2]},
       {&kAvx512Layer[0], &kAvx512Bfloat16Layer, &kAvx512Layer[2]},
       {&kAvx512Linear[0], &kAvx512Bfloat16Linear, &kAvx512Linear[2]}},
      {"avx512_bf16",
       &Features::avx512_bf16,
       {&kAvx512[0], &kAvx512Bfloat16, &kAvx512[2]},
       {&kAvx512Layer[0], &kAvx512Bfloat16Layer, &kAvx512Layer[2]},
       {&kAvx512Linear[0], &kAvx512Bfloat16Linear, &kAvx512Linear[2]}},
      {"avx512",
       &Features::avx512,
       {&kAvx512[0], &kAvx512[1], &kAvx512[2]},
       {&kAvx512Layer[0], &kAvx512Layer[1], &kAvx512Layer[2]},
       {&kAvx512Linear[0], &kAvx512Linear[1], &kAvx512Linear[2]}},
      {"avx2",
       &Features::avx2_fma,
       {&kAvx2[0], &kAvx2[1], &kAvx2[2]},
       {&kAvx2Layer[0], &kAvx2Layer[1], &kAvx2Layer[2]},
       {&kAvx2Linear[0], &kAvx2Linear[1], &kAvx2Linear[2]}},
      // For tests of amx on machines without it; slow, and last, so that it runs only when named.
      {"amx_emulated",
       &Features::avx512_bf16,
       {&kAmxEmulated[0], &kAmxEmulated[1], &kAmxEmulated[2]},
       {&kAvx512Layer[0], &kAvx512Bfloat16Layer, &kAvx512Layer[2]},
       {&kAvx512Linear[0], &kAvx512Bfloat16Linear, &kAvx512Linear[2]}},
#endif
  };
  return sets;
}

}  // namespace mbt_fast::cpu
