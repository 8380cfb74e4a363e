"""Training on several devices, on one host or on many.

Names are loaded when they are asked for: sharded tensors take torch longer to import than the model
takes, and a run on one device needs none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

if TYPE_CHECKING:
    from mbt_fast.parallel.gradients import average_gradients, clip_grad_norm_, sum_gradients
    from mbt_fast.parallel.modality import ModalityParallelMBT, modality_parallel
    from mbt_fast.parallel.tensor import tensor_parallel

__all__ = [
    "ModalityParallelMBT",
    "average_gradients",
    "clip_grad_norm_",
    "modality_parallel",
    "sum_gradients",
    "tensor_parallel",
]
_MODULES = {
    "ModalityParallelMBT": "modality",
    "average_gradients": "gradients",
    "clip_grad_norm_": "gradients",
    "modality_parallel": "modality",
    "sum_gradients": "gradients",
    "tensor_parallel": "tensor",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not dist.is_available():
        raise ImportError(f"{name} needs torch.distributed, which this build of torch lacks")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
