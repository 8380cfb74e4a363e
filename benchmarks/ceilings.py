"""What torch reaches on this machine: the ceilings that records are shares of."""

from functools import partial

import torch

from benchmarks.record import Ceilings
from mbt_fast.testing.timing import interleaved_times

SIZES = {"cpu": 2048, "cuda": 8192}  # of the square matrices
# On a CPU 20 seconds' worth: a neighbour may keep the memory busy for one or two.
ROUNDS = {"cpu": 1000, "cuda": 11}
COPIED = {"cpu": 2**26, "cuda": 2**30}  # bytes, far beyond the caches


def measure_ceilings(device: torch.device, *, smoke: bool = False) -> Ceilings:
    """Best rates of torch's square matrix product, by dtype, and of its copy, read and written.

    Args:
        device: Where.
        smoke: A size that costs nothing and means nothing.
    """
    size = 64 if smoke else SIZES[device.type]
    dtypes = [torch.bfloat16, torch.float32, *([torch.float16] if device.type == "cuda" else [])]
    variants = {}
    for dtype in dtypes:
        a = torch.randn(size, size, device=device).to(dtype)
        variants[str(dtype).removeprefix("torch.")] = partial(torch.matmul, a, a)
    source = torch.ones((2**16 if smoke else COPIED[device.type]) // 4, device=device)
    variants["copy"] = partial(torch.empty_like(source).copy_, source)
    for run in variants.values():
        run()
    rounds = 3 if smoke else ROUNDS[device.type]
    times = interleaved_times(variants, device, seconds=20.0, max_rounds=rounds).seconds
    seconds = {name: min(values) for name, values in times.items()}
    copied = 2 * source.nbytes / seconds.pop("copy") / 1e9
    rates = {name: 2 * size**3 / value / 1e9 for name, value in seconds.items()}
    threads = torch.get_num_threads() if device.type == "cpu" else None
    return Ceilings(matmul_gflops=rates, copy_gb_per_s=copied, threads=threads)
