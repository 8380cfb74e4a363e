"""What runs here: device, backends, instruction sets, and the operators that a call reaches.

Tests see through this module whatever lies below the public functions.
"""

from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from mbt_fast.functional import (
    add_layer_norm,
    bias_gelu,
    bottleneck_attention,
    dense_attention,
    linear,
    residual_add,
)
from mbt_fast.ops import dispatch, extension

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STOCK = ("sdpa", "reference")  # torch's own functions; the others are kernels of ours
NAMES = [row.name for row in dispatch.BACKENDS]

CALLS = {  # of [1, 1, 16] in some dtype; attention asks for heads that not every kernel has
    "bottleneck_attention": lambda x, on: bottleneck_attention(
        [x.expand(3, 1, 1, 1, 16).movedim(0, 2)], 0, backend=on
    ),
    "dense_attention": lambda x, on: dense_attention(x[None], x[None], x[None], backend=on),
    "add_layer_norm": lambda x, on: add_layer_norm([x], None, [x[0, 0]], [x[0, 0]], backend=on),
    "residual_add": lambda x, on: residual_add([x], [x], backend=on),
    "linear": lambda x, on: linear(x, x[0], backend=on),
    "bias_gelu": lambda x, on: bias_gelu(x, backend=on),
    "bias_gelu_erf": lambda x, on: bias_gelu(x, approximate="none", backend=on),
}


@cache
def runs(backend, op="bottleneck_attention", dtype=torch.float32):
    """Whether a backend can run an op here in this dtype."""
    try:
        CALLS[op](torch.zeros(1, 1, 16, dtype=dtype, device=DEVICE), backend)
    except dispatch.BackendError:
        return False
    return True


def backends_of(op):
    """Under TRITON_INTERPRET=1, or on a GPU, this includes "triton"."""
    return [name for name in NAMES if runs(name, op)]


def kernels_of(op):
    """The backends of an op that are kernels of ours."""
    return [name for name in backends_of(op) if name not in STOCK]


def widest(backend, op="bottleneck_attention"):
    """Float64, or what the backend has instead."""
    return torch.float64 if runs(backend, op, torch.float64) else torch.float32


BACKENDS = backends_of("bottleneck_attention")
backends = pytest.mark.parametrize("backend", BACKENDS)
kernels = pytest.mark.parametrize("backend", kernels_of("bottleneck_attention"))
NO_CPU_KERNELS = "; ".join(extension.why_no_cpu_kernels())
needs_cpu_kernels = pytest.mark.skipif(
    "cpu" not in BACKENDS, reason=f"no CPU kernels: {NO_CPU_KERNELS}"
)


class Kernel(NamedTuple):
    """A backend; that of the CPU once for every instruction set, chosen by MBT_FAST_CPU."""

    backend: str
    instruction_set: str | None = None

    def __str__(self):
        return "-".join(filter(None, self))


def instruction_sets():
    return extension.module().instruction_sets() if "cpu" in BACKENDS else []


def every_kernel(op, dtypes=DTYPES):
    """Every kernel of an op, in each of these dtypes that it has."""
    kernels = [Kernel(name) for name in kernels_of(op) if name != "cpu"]
    kernels += [Kernel("cpu", name) for name in instruction_sets() if runs("cpu", op)]
    return [(k, dtype) for k in kernels for dtype in dtypes if runs(k.backend, op, dtype)]


def detached(entry):
    return entry.detach() if isinstance(entry, torch.Tensor) else entry


class OwnCalls(TorchDispatchMode):
    """The calls of our own operators, forward and backward: operator, arguments, options."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "mbt_fast":
            self.calls.append((func, *tree_map(detached, (args, kwargs or {}))))
        return func(*args, **(kwargs or {}))

    @property
    def names(self):
        return [func._schema.name.removeprefix("mbt_fast::") for func, *_ in self.calls]
