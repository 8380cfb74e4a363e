#include "backward_launch.cuh"

template void mbt_fast::cuda::launch_backward<mbt_fast::cuda::Float16, 64>(const BackwardParameters&, void*);
