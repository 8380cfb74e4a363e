"""How many kernels a call launches."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def count_launches(run: Callable[[], object], device: torch.device) -> int:
    """Kernels and copies on a GPU; on the CPU operators that write memory, so no views."""
    if device.type == "cuda":
        with profile(activities=[ProfilerActivity.CUDA]) as record:
            run()
            torch.cuda.synchronize(device)
        return sum(event.device_type == DeviceType.CUDA for event in record.events())
    with _Counter() as counter:
        run()
    return counter.count


class _Counter(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = _memory((args, kwargs)), _memory(result)
        allocates = "empty" in func.__name__
        self.count += bool(func._schema.is_mutable or made - given) and not allocates
        return result


def _memory(tree: Any) -> set[int]:
    """Addresses of the memory of all tensors."""
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}
