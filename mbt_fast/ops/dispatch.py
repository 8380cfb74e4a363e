"""Choose a backend for a call, and say why the others were not chosen.

``BACKENDS`` is the whole policy: order is preference, each row lists what it needs. A backend is
*unavailable* for a reason of the installation and *unsupported* for a reason of the call; both are
lists of sentences, empty when all is well. ``"auto"`` takes the first row that can run the call and
is not opt-in for it; a named backend runs or raises with the whole table. Nothing falls back
silently.
"""

import importlib.util
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mbt_fast.ops import cpu, cuda, extension, triton
from mbt_fast.ops.autocast import autocast
from mbt_fast.ops.min_sizes import CPU_MIN_SIZE

ATTENTION = frozenset({"bottleneck_attention"})
LAYER = frozenset({"bias_gelu", "add_layer_norm", "residual_add"})
LINEAR = frozenset({"linear"})
EVERY = ATTENTION | LAYER | LINEAR | {"dense_attention"}
HALF = frozenset({torch.float16, torch.bfloat16})
KERNEL_DTYPES = HALF | {torch.float32}
# Under TRITON_INTERPRET=1 the Triton kernels run on CPU tensors. The interpreter computes wrong
# values for bfloat16 (Triton 3.6 to 3.9).
INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"


class Call(NamedTuple):
    """What dispatch may look at: metadata, never values, so that ``torch.compile`` can trace it.

    Args:
        op: Its name.
        device: Of the tensors.
        dtype: In which the op runs, after autocast.
        size: What ``auto`` compares with ``min_size``: rows of the longest stream in attention,
            elements in the ops of ``LAYER``, multiply-adds in a Linear; ``None`` where nothing
            should depend on it, as in a traced graph, which should hold for every length.
        width: Head dimension in attention, channels in the ops of ``LAYER``.
        form: Of the op, if it has several: ``approximate`` of GELU.
    """

    op: str
    device: torch.device
    dtype: torch.dtype
    size: int | None = None
    width: int | None = None
    form: str | None = None


@dataclass(frozen=True, eq=False)
class Backend:
    """One row of the table; ``None`` means no such requirement.

    Args:
        name: What users call it.
        ops: What it implements.
        launchers: Module with ``<op>_fwd`` and ``<op>_bwd``, which fill outputs that they are
            given; ``None`` where the ops are composed of torch's own functions.
        device_type: The only one that it runs on.
        dtypes: Those that it takes.
        min_capability: Of a GPU.
        major: The one major compute capability that it has machine code for.
        requires: A package or extension.
        widths: By op, the head dimensions or channels that it takes.
        max_width: By op, the largest.
        forms: By op, the forms that it has.
        min_size: By op and dtype, the size from which on it is measured to win; ``auto`` takes
            kernels for no other. Of the C++ kernels by instruction set first.
        measured_on: By op, the one vendor, as cpuid names it, on whose CPUs it is measured to win.
        unmeasured: ``auto`` does not take it at all.
    """

    name: str
    ops: frozenset[str]
    launchers: ModuleType | None = None
    device_type: str | None = None
    dtypes: frozenset[torch.dtype] | None = None
    min_capability: tuple[int, int] | None = None
    major: int | None = None
    requires: str | None = None
    widths: Mapping[str, Collection[int]] = field(default_factory=dict)
    max_width: Mapping[str, int] = field(default_factory=dict)
    forms: Mapping[str, Collection[str]] = field(default_factory=dict)
    min_size: Mapping[str, Any] = field(default_factory=dict)
    measured_on: Mapping[str, str] = field(default_factory=dict)
    unmeasured: bool = False

    def unavailable(self) -> list[str]:
        """Reasons of the installation."""
        return _missing(self.requires) if self.requires else []

    def unsupported(self, call: Call) -> list[str]:
        """Reasons of this call."""
        reasons = []
        if call.op not in self.ops:
            reasons.append(f"it does not implement {call.op}")
        elif call.form is not None and call.form not in self.forms.get(call.op, (call.form,)):
            reasons.append(f"it does not implement {call.op} of the form {call.form!r}")
        reasons += self._unsupported_device(call)
        if self.dtypes is not None and call.dtype not in self.dtypes:
            reasons.append(f"dtype is {call.dtype}, needs {_names(self.dtypes)}")
        return reasons if call.width is None else reasons + self._unsupported_width(call)

    def min_size_of(self, op: str) -> Mapping[torch.dtype, int] | None:
        """By dtype, the size from which on it is measured to win here; ``None`` if it was not."""
        if self.launchers is cpu:
            return self.min_size.get(extension.instruction_set(), {}).get(op)
        return self.min_size.get(op)

    def smallest(self, call: Call) -> int:
        """The size below which ``auto`` passes this backend over, whatever the machine."""
        tables = self.min_size.values() if self.launchers is cpu else [self.min_size]
        return min((t.get(call.op, {}).get(call.dtype, 0) for t in tables), default=0)

    def opt_in_reason(self, call: Call | None) -> str | None:
        """Why ``auto`` passes this backend over though it can run the call, if it does."""
        slow = _slow_cuda_build() if self.launchers is cuda else None
        if slow:
            return slow
        sizes = None if call is None else self.min_size_of(call.op)
        measured = call is None or self.launchers is None or sizes is not None
        if self.unmeasured or not measured:
            return "no recorded measurement shows that it is not slower than torch's own"
        if call is None or sizes is None:
            return None
        if call.op in ATTENTION and call.dtype == torch.bfloat16 and self.launchers is cpu:
            untried = _untried_in_bfloat16()
            if untried:
                return untried
        vendor = self.measured_on.get(call.op)
        if vendor is not None and _cpu_vendor() != vendor:
            return f"{call.op} is measured on CPUs by {vendor} alone, and this is {_cpu_vendor()}"
        return _too_small(call, sizes.get(call.dtype))

    def reasons(self, call: Call | None) -> list[str]:
        """Everything that speaks against this backend, for ``call`` or, with ``None``, for any."""
        return self.unavailable() + (self.unsupported(call) if call else [])

    def _unsupported_device(self, call: Call) -> list[str]:
        if self.device_type not in (None, call.device.type):
            return [f"device is {call.device.type}, needs {self.device_type}"]
        if not (self.min_capability or self.major) or call.device.type != "cuda":
            return []
        have, reasons = torch.cuda.get_device_capability(call.device), []
        if self.min_capability is not None and have < self.min_capability:
            need = _dots(self.min_capability)
            reasons.append(f"compute capability is {_dots(have)}, needs at least {need}")
        if self.major not in (None, have[0]):
            reasons.append(f"compute capability is {_dots(have)}, needs {self.major}.x")
        return reasons

    def _unsupported_width(self, call: Call) -> list[str]:
        widths, most = self.widths.get(call.op), self.max_width.get(call.op)
        if widths and call.width not in widths:
            need = " or ".join(map(str, sorted(widths)))
            return [f"head dimension is {call.width}, needs {need}"]
        if most is not None and call.width is not None and call.width > most:
            return [f"rows have {call.width} channels, and it takes at most {most}"]
        return []


# Torch multiplies float32 by MKL, which has its AVX-512 for CPUs of another vendor.
CPU_MEASURED_ON = {"linear": "AuthenticAMD"}
CPU = ATTENTION | LAYER | LINEAR
TRITON_ON = "cpu" if INTERPRET else "cuda"
TRITON_DTYPES = frozenset({torch.float16, torch.float32}) if INTERPRET else KERNEL_DTYPES
TRITON_MAX = dict.fromkeys(("add_layer_norm", "residual_add"), 8192)  # a program holds whole rows
SM_80 = (8, 0)

# fmt: off
BACKENDS = (
    #       name         ops                launchers  device     dtypes         compute
    Backend("cuda",      ATTENTION,         cuda,      "cuda",    HALF,          major=9,
            requires=extension.CUDA_MODULE, widths={"bottleneck_attention": {64, 128}},
            unmeasured=True),
    Backend("triton",    ATTENTION | LAYER, triton,    TRITON_ON, TRITON_DTYPES, SM_80,
            requires="triton", max_width=TRITON_MAX, forms={"bias_gelu": {"tanh"}},
            unmeasured=True),
    Backend("cpu",       CPU,               cpu,       "cpu",     KERNEL_DTYPES,
            requires=extension.MODULE, min_size=CPU_MIN_SIZE, measured_on=CPU_MEASURED_ON),
    Backend("sdpa",      EVERY),
    Backend("reference", EVERY),
)
# fmt: on
KERNELS = tuple(row for row in BACKENDS if row.launchers is not None)
STOCK, REFERENCE = BACKENDS[-2:]


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


def implements(backend: str, op: str) -> bool:
    """Whether a backend has ``op`` at all, here or elsewhere; ``"auto"`` finds one that has."""
    return backend == "auto" or any(row.name == backend and op in row.ops for row in BACKENDS)


def select(call: Call, backend: str = "auto") -> Backend:
    """Return the backend that will run ``call``.

    Raises:
        TypeError: ``backend`` is not a string.
        ValueError: ``backend`` is not a name of the table.
        BackendError: The requested backend cannot run this call.
    """
    for row, smallest in _candidates(call, backend):
        short = call.size is not None and call.size < smallest
        if backend != "auto" or not (short or row.opt_in_reason(call)):
            return row
    raise BackendError(f"backend {backend!r} cannot run this call\n{format_table(call)}")


def format_table(call: Call | None = None) -> str:
    """The table as text: one line per backend, with every reason against it."""
    usable = (row for row in BACKENDS if not row.reasons(call) and not row.opt_in_reason(call))
    taken = next(usable, None)
    lines = []
    for row in BACKENDS:
        chosen = ", and auto takes it" if call is not None and row is taken else ""
        lines.append(f"  {row.name:<10} {verdict(row, call)}{chosen}")
    return "\n".join(lines)


def verdict(row: Backend, call: Call | None = None) -> str:
    """What to say of one backend: no and why, only by name and why, or yes."""
    reasons = row.reasons(call)
    if reasons:
        return f"no: {'; '.join(reasons)}"
    opt_in = row.opt_in_reason(call)
    return f"only by name: {opt_in}" if opt_in else "yes"


def explain(
    qkv: Sequence[Tensor] | None = None,
    n_bottlenecks: int = 0,
    *,
    lengths: Sequence[Tensor | None] | None = None,
    update: str | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> str:
    """Say of every backend whether it can run a call of ``bottleneck_attention``, and why.

    Takes the arguments of ``bottleneck_attention`` and refuses the same ones, so that a call is
    explained by putting ``dispatch.explain`` in its place. Without any the answer is about the
    installation.

    Example:
        >>> print(explain([torch.zeros(1, 9, 3, 2, 16)], 4).splitlines()[-2])
          sdpa       yes, and auto takes it
    """
    from mbt_fast.ops.bottleneck_attention import check, describe  # which needs this table

    check_name(backend)
    if qkv is None:
        return format_table()
    check(qkv, n_bottlenecks, lengths, update, scale, return_lse)
    return format_table(describe(autocast(qkv)))


def _too_small(call: Call, least: int | None) -> str | None:
    """Why a call is none of those of at least a size, in which kernels win; ``None`` if it is."""
    if call.op in LAYER and torch.compiler.is_compiling():
        return "a compiler fuses torch's own with what surrounds it"
    if least is None:
        return f"{call.op} in {call.dtype} is not always faster than torch's own"
    if call.size is None or call.size >= least:
        return None
    if call.op in LINEAR:
        return f"it has {call.size} multiply-adds, and the kernel wins from {least} on"
    if call.op in ATTENTION:
        return f"streams have at most {call.size} rows, and it wins from {least} on"
    return f"{call.size} elements gain from a kernel, and it wins from {least} on"


# Not functools.cache: Dynamo looks through it and warns.
_MISSING: dict[str, list[str]] = {}
_VENDOR: list[str] = []
_CANDIDATES: dict[tuple[Any, ...], list[tuple[Backend, int]]] = {}


def _candidates(call: Call, backend: str) -> list[tuple[Backend, int]]:
    """The rows that can run a call of any size, in order, each with its ``smallest``.

    Kept, because the host's time is what short streams wait for. A traced call has no size, and a
    symbolic width has no hash.
    """
    op, device, dtype, _, width, form = call
    if torch.compiler.is_compiling() or isinstance(width, torch.SymInt):
        return [(row, 0) for row in _able(call, backend)]
    key = (backend, op, device, dtype, width, form)
    if key not in _CANDIDATES:
        _CANDIDATES[key] = [(row, row.smallest(call)) for row in _able(call, backend)]
    return _CANDIDATES[key]


def _able(call: Call, backend: str) -> list[Backend]:
    """The rows that can run a call of any size; of a named backend only its own."""
    check_name(backend)
    return [row for row in BACKENDS if backend in ("auto", row.name) and not row.reasons(call)]


def _missing(requirement: str) -> list[str]:
    """Why a package, not imported, or our own kernels cannot be used; empty if they can."""
    if requirement not in _MISSING:
        if requirement == extension.MODULE:
            _MISSING[requirement] = extension.why_no_cpu_kernels()
        elif requirement == extension.CUDA_MODULE:
            _MISSING[requirement] = extension.why_no_cuda_kernels()
        else:
            found = importlib.util.find_spec(requirement) is not None
            _MISSING[requirement] = [] if found else [f"{requirement!r} is not installed"]
    return _MISSING[requirement]


def _untried_in_bfloat16() -> str | None:
    """``extension.why_not_in_bfloat16``, of a machine that has our kernels."""
    return None if _missing(extension.MODULE) else extension.why_not_in_bfloat16()


def _cpu_vendor() -> str:
    """Who made this CPU; known where our kernels are."""
    if not _VENDOR:
        _VENDOR.append(extension.module().cpu_vendor())
    return _VENDOR[0]


def _slow_cuda_build() -> str | None:
    """``extension.why_slow_cuda_kernels``, of an installation that has our kernels."""
    return None if _missing(extension.CUDA_MODULE) else extension.why_slow_cuda_kernels()


# What torch.compiler.assume_constant_result does, which would import torch._dynamo: one second.
_missing._dynamo_marked_constant = True  # type: ignore[attr-defined]
extension.instruction_set._dynamo_marked_constant = True  # type: ignore[attr-defined]
_untried_in_bfloat16._dynamo_marked_constant = True  # type: ignore[attr-defined]
_cpu_vendor._dynamo_marked_constant = True  # type: ignore[attr-defined]
_slow_cuda_build._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _names(dtypes: frozenset[torch.dtype]) -> str:
    return ", ".join(sorted(map(str, dtypes)))


def _dots(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
