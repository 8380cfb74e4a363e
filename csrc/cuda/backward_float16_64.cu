#include "backward_launch.cuh"

namespace mbt_fast::cuda {

template void launch_backward<Float16, 64>(const BackwardParameters&, void*);

}  // namespace mbt_fast::cuda
