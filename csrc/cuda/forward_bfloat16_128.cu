#include "forward_launch.cuh"

template void mbt_fast::cuda::launch_forward<mbt_fast::cuda::Bfloat16, 128>(
    const ForwardParameters&, void*);
