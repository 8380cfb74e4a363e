"""Modality towers as parallel branches of a CUDA graph.

Below the fusion layer the modalities do not meet. Eager PyTorch gains nothing from running them
side by side: at small batches it waits for the host, at large ones one tower fills the GPU. A graph
has no host to wait for, and small towers then share the GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from mbt_fast.layers.fusion import Streams

_APART = ContextVar("mbt_fast_towers_apart", default=False)


@contextmanager
def towers_apart() -> Iterator[None]:
    """Within it ``run_towers`` gives each modality a CUDA stream of its own.

    Warm-up runs must be within it as well as the capture: one tower alone may call other kernels
    than all of them together, and none may be compiled during a capture.
    """
    token = _APART.set(True)
    try:
        yield
    finally:
        _APART.reset(token)


def run_towers(run: Callable[[Sequence[str]], Streams], modalities: Sequence[str]) -> Streams:
    """``run(modalities)``, or within ``towers_apart`` one call for each, side by side.

    Whatever a side stream does is ordered after what the current stream did before, and before what
    it does next; so memory that one frees is not written by the other too early.

    Args:
        run: Maps some modalities to their streams; the modalities are independent.
        modalities: All of them.
    """
    if torch.compiler.is_compiling() or not _APART.get() or len(modalities) == 1:
        return run(modalities)
    first, *others = modalities
    current = torch.cuda.current_stream()
    sides = [torch.cuda.Stream() for _ in others]
    parts = {}
    for modality, side in zip(others, sides, strict=True):
        side.wait_stream(current)
        with torch.cuda.stream(side):
            parts[modality] = run([modality])[modality]
    parts[first] = run([first])[first]
    for side in sides:
        current.wait_stream(side)
    return {modality: parts[modality] for modality in modalities}
