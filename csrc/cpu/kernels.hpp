// What the translation units of the instruction sets define, one file each.
#pragma once

#include "element.hpp"
#include "head.hpp"
#include "layer.hpp"

namespace mbt_fast::cpu {

extern const HeadKernels kAvx2[kDtypes];
extern const HeadKernels kAvx512[kDtypes];
extern const HeadKernels kAvx512Bfloat16;
extern const HeadKernels kAmx[kDtypes];
extern const HeadKernels kAmxEmulated[kDtypes];

extern const LayerKernels kAvx2Layer[kDtypes];
extern const LayerKernels kAvx512Layer[kDtypes];
extern const LayerKernels kAvx512Bfloat16Layer;

}  // namespace mbt_fast::cpu
