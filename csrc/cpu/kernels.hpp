// What the translation units of the instruction sets define, one file each.
#pragma once

#include "element.hpp"
#include "head.hpp"

namespace mbt_fast::cpu {

extern const HeadKernels kAvx2[kDtypes];
extern const HeadKernels kAvx512[kDtypes];
extern const HeadKernels kAvx512Bfloat16;
extern const HeadKernels kAmx[kDtypes];
extern const HeadKernels kAmxEmulated[kDtypes];

}  // namespace mbt_fast::cpu
