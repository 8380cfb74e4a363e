"""Memory of a call, counted and not sampled: its peak, and what it keeps for the backward."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, UntypedStorage
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that ``run`` holds at its peak, beyond those that existed before.

    On a GPU from the caching allocator's statistics; on the CPU from the profiler's record of every
    allocation, so that temporaries inside operators count too.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = record.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def saved_bytes(run: Callable[[], object], apart_from: Iterable[Tensor] = ()) -> int:
    """Bytes of memory that autograd keeps for the backward of ``run``, each counted once.

    Args:
        run: Called once, with gradients.
        apart_from: Tensors that exist in any case, such as parameters.
    """
    storages: dict[int, UntypedStorage] = {}  # keeps them, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    known = {tensor.untyped_storage().data_ptr() for tensor in apart_from}
    return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in known)
