"""How many kernels a call launches."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode


def count_launches(run: Callable[[], object], device: torch.device) -> int:
    """Kernels and copies on a GPU; on the CPU operators that compute or copy, so no views."""
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
        self.count += not _is_view(func)
        return func(*args, **(kwargs or {}))


def _is_view(func: Any) -> bool:
    """Whether the operator returns memory that it got, and writes nothing."""
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)
