"""Choose a backend for a call, and say why the others were not chosen.

``BACKENDS`` is the whole policy: order is preference, each row lists what it needs. A backend is
*unavailable* for a reason of the installation and *unsupported* for a reason of the call; both are
lists of sentences, empty when all is well. Nothing falls back silently: ``"auto"`` takes the first
row without reasons, a named backend runs or raises with the whole table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HALF = frozenset({torch.float16, torch.bfloat16})
KERNEL_DTYPES = HALF | {torch.float32}


@dataclass(frozen=True)
class Call:
    """What dispatch may look at: metadata, never values, so that ``torch.compile`` can trace it."""

    op: str
    device_type: str
    dtype: torch.dtype

    @classmethod
    def of(cls, op: str, tensors: Sequence[Tensor]) -> "Call":
        """Describe a call of ``op``; the first tensor speaks for device and dtype."""
        return cls(op=op, device_type=tensors[0].device.type, dtype=tensors[0].dtype)


@dataclass(frozen=True)
class Backend:
    """One row of the table. ``None`` means: no such requirement."""

    name: str
    ops: frozenset[str]
    device_type: str | None = None
    dtypes: frozenset[torch.dtype] | None = None

    def unavailable(self) -> list[str]:
        """Reasons of the installation."""
        return [] if self.ops else [f"this version of mbt_fast has no {self.name} kernels"]

    def unsupported(self, call: Call) -> list[str]:
        """Reasons of this call."""
        reasons = []
        if self.ops and call.op not in self.ops:
            reasons.append(f"it does not implement {call.op}")
        if self.device_type not in (None, call.device_type):
            reasons.append(f"device is {call.device_type}, needs {self.device_type}")
        if self.dtypes is not None and call.dtype not in self.dtypes:
            reasons.append(f"dtype is {call.dtype}, needs {_names(self.dtypes)}")
        return reasons

    def reasons(self, call: Call | None) -> list[str]:
        """Everything that speaks against this backend, for ``call`` or, with ``None``, for any."""
        return self.unavailable() + (self.unsupported(call) if call else [])


NONE: frozenset[str] = frozenset()
EVERY = frozenset({"bottleneck_attention", "dense_attention"})

# fmt: off
BACKENDS = (
    #       name         ops    device  dtypes
    Backend("cuda",      NONE,  "cuda", HALF),
    Backend("triton",    NONE,  "cuda", KERNEL_DTYPES),
    Backend("cpu",       NONE,  "cpu",  KERNEL_DTYPES),
    Backend("sdpa",      EVERY),
    Backend("reference", EVERY),
)
# fmt: on


class BackendError(RuntimeError):
    """No backend, or not the requested one, can run this call; the message says why."""


def check_name(backend: str) -> None:
    """Refuse a name that is not in the table.

    Raises:
        TypeError: ``backend`` is not a string.
        ValueError: ``backend`` is neither ``"auto"`` nor a name of the table.
    """
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a string, got {backend!r}")
    names = ["auto", *(row.name for row in BACKENDS)]
    if backend not in names:
        raise ValueError(f"backend must be one of {', '.join(names)}, got {backend!r}")


def select(call: Call, backend: str = "auto") -> str:
    """Return the name of the backend that will run ``call``.

    Raises:
        TypeError: ``backend`` is not a string.
        ValueError: ``backend`` is not a name of the table.
        BackendError: The requested backend cannot run this call.
    """
    check_name(backend)
    for row in BACKENDS:
        if backend in ("auto", row.name) and not row.reasons(call):
            return row.name
    raise BackendError(f"backend {backend!r} cannot run this call\n{format_table(call)}")


def format_table(call: Call | None = None) -> str:
    """The table as text: one line per backend, with every reason against it."""
    lines = []
    for row in BACKENDS:
        reasons = row.reasons(call)
        lines.append(f"  {row.name:<10} {'no: ' + '; '.join(reasons) if reasons else 'yes'}")
    return "\n".join(lines)


def explain(qkv: Sequence[Tensor] | None = None, *args: object, **kwargs: object) -> str:
    """Say of every backend whether it can run a call of ``bottleneck_attention``, and why not.

    Takes the arguments of ``bottleneck_attention``, so that a call is explained by putting
    ``dispatch.explain`` in its place. Without arguments the answer is about the installation.

    Example:
        >>> print(explain([torch.zeros(1, 9, 3, 2, 16)], 4))
          cuda       no: this version of mbt_fast has no cuda kernels; device is cpu, needs cuda; \
dtype is torch.float32, needs torch.bfloat16, torch.float16
          triton     no: this version of mbt_fast has no triton kernels; device is cpu, needs cuda
          cpu        no: this version of mbt_fast has no cpu kernels
          sdpa       yes
          reference  yes
    """
    return format_table(Call.of("bottleneck_attention", qkv) if qkv else None)


def _names(dtypes: frozenset[torch.dtype]) -> str:
    return ", ".join(sorted(map(str, dtypes)))
