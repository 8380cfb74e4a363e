#include "backward_launch.cuh"

namespace mbt_fast::cuda {

template void launch_backward<Bfloat16, 128>(const BackwardParameters&, void*);

}  // namespace mbt_fast::cuda
