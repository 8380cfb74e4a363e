#include "backward_launch.cuh"

template void mbt_fast::cuda::launch_backward<mbt_fast::cuda::Bfloat16, 64>(const BackwardParameters&, void*);
