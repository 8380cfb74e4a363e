"""Choose a backend for a call, and say why the others were not chosen.

``BACKENDS`` is the whole policy: order is preference, each row lists what it needs. A backend is
*unavailable* for a reason of the installation and *unsupported* for a reason of the call; both are
lists of sentences, empty when all is well. A row in *reserve* runs when it is named, and is passed
over by ``"auto"``, for the reason given: it was not measured, or it wins for other calls only.
Nothing falls back silently: ``"auto"`` takes the
first row without reasons, a named backend runs or raises with the whole table.
"""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mbt_fast import native
from mbt_fast.autocast import autocast_dtype
from mbt_fast.validation import check_bottleneck_attention

HALF = frozenset({torch.float16, torch.bfloat16})
KERNEL_DTYPES = HALF | {torch.float32}
# Under TRITON_INTERPRET=1 the Triton kernels run on CPU tensors. The interpreter computes wrong
# values for bfloat16 (Triton 3.6 to 3.9).
INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Call:
    """What dispatch may look at: metadata, never values, so that ``torch.compile`` can trace it."""

    op: str
    device: torch.device
    dtype: torch.dtype
    rows: int | None = None  # of the longest stream; None where nothing should depend on it
    elements: int | None = None  # of an op of LAYER; likewise
    head_dim: int | None = None  # of packed streams
    channels: int | None = None  # of an op of LAYER

    @classmethod
    def of(cls, op: str, tensors: Sequence[Tensor]) -> "Call":
        """Describe a call of ``op``; the first tensor speaks for device and, cast, for dtype.

        Rows count for packed streams ``[B, S, 3, H, D]`` alone, and not while a graph is traced:
        its costs are others, and it should hold for every length.
        """
        packed = op in ATTENTION and not torch.compiler.is_compiling()
        return cls(
            op=op,
            device=tensors[0].device,
            dtype=autocast_dtype(tensors[0]),
            rows=max(stream.shape[1] for stream in tensors) if packed else None,
            head_dim=tensors[0].shape[-1] if op in ATTENTION else None,
        )

    @classmethod
    def of_layer(cls, op: str, tensors: Sequence[Tensor]) -> "Call":
        """Describe a call of an op of ``LAYER``, whose dtype autocast leaves alone."""
        traced = torch.compiler.is_compiling()
        elements = None if traced else sum(tensor.numel() for tensor in tensors)
        first = tensors[0]
        return cls(op, first.device, first.dtype, elements=elements, channels=first.shape[-1])


@dataclass(frozen=True)
class Backend:
    """One row of the table. ``None`` means: no such requirement."""

    name: str
    ops: frozenset[str]
    device_type: str | None = None
    dtypes: frozenset[torch.dtype] | None = None
    min_capability: tuple[int, int] | None = None
    requires: str | None = None
    major: int | None = None  # of the compute capability: machine code for no other
    head_dims: frozenset[int] | None = None
    most_channels: Mapping[str, int] = field(default_factory=dict)  # by op
    unmeasured: bool = False
    # Rows of the longest stream from which on it wins, by dtype.
    wins_from: Mapping[torch.dtype, int] = field(default_factory=dict)
    # Ops that it wins in some dtypes only, and there from a number of elements on.
    wins_in: Mapping[str, Mapping[torch.dtype, int]] = field(default_factory=dict)

    def unavailable(self) -> list[str]:
        """Reasons of the installation."""
        if not self.ops:
            return [f"this version of mbt_fast has no {self.name} kernels"]
        return _missing(self.requires) if self.requires else []

    def unsupported(self, call: Call) -> list[str]:
        """Reasons of this call."""
        reasons = []
        if self.ops and call.op not in self.ops:
            reasons.append(f"it does not implement {call.op}")
        if self.device_type not in (None, call.device.type):
            reasons.append(f"device is {call.device.type}, needs {self.device_type}")
        elif (self.min_capability or self.major) and call.device.type == "cuda":
            have = torch.cuda.get_device_capability(call.device)
            if self.min_capability is not None and have < self.min_capability:
                need = _dots(self.min_capability)
                reasons.append(f"compute capability is {_dots(have)}, needs at least {need}")
            if self.major not in (None, have[0]):
                reasons.append(f"compute capability is {_dots(have)}, needs {self.major}.x")
        if self.dtypes is not None and call.dtype not in self.dtypes:
            reasons.append(f"dtype is {call.dtype}, needs {_names(self.dtypes)}")
        if self.head_dims and call.head_dim is not None and call.head_dim not in self.head_dims:
            need = " or ".join(map(str, sorted(self.head_dims)))
            reasons.append(f"head dimension is {call.head_dim}, needs {need}")
        most = self.most_channels.get(call.op)
        if most is not None and call.channels is not None and call.channels > most:
            reasons.append(f"rows have {call.channels} channels, and it takes at most {most}")
        return reasons

    def reserve(self, call: Call | None) -> str | None:
        """Why ``auto`` passes this backend over though it can run the call, if it does."""
        if self.unmeasured:
            stock = "torch's own" if call is not None and call.op in LAYER else "sdpa"
            return f"no recorded measurement shows that it is not slower than {stock}"
        if self.requires == NATIVE and call is not None and call.op in ATTENTION:
            untried = _untried_in_bfloat16() if call.dtype == torch.bfloat16 else None
            if untried:
                return untried
        least = self.wins_from.get(call.dtype, 0) if call is not None else 0
        if call is not None and call.rows is not None and call.rows < least:
            return f"streams have at most {call.rows} rows, and it wins from {least} on"
        if call is not None and call.op in self.wins_in:
            return self._reserve_of_layer(call, self.wins_in[call.op].get(call.dtype))
        return None

    def _reserve_of_layer(self, call: Call, least: int | None) -> str | None:
        if torch.compiler.is_compiling():
            return "a compiler fuses torch's own with what surrounds it"
        if least is None:
            return f"{call.op} in {call.dtype} is not always faster than torch's own"
        if call.elements is not None and call.elements < least:
            return f"the call has {call.elements} elements, and it wins from {least} on"
        return None

    def reasons(self, call: Call | None) -> list[str]:
        """Everything that speaks against this backend, for ``call`` or, with ``None``, for any."""
        return self.unavailable() + (self.unsupported(call) if call else [])


ATTENTION = frozenset({"bottleneck_attention"})
EVERY = ATTENTION | {"dense_attention"}
GELU = {"tanh": "bias_gelu", "none": "bias_gelu_erf"}  # by ``approximate``
# By whether slots are shared or branches left out: in a plain sum there is nothing to fuse.
RESIDUAL = {True: "residual_add", False: "residual_add_plain"}
LAYER = frozenset({*GELU.values(), "add_layer_norm", *RESIDUAL.values()})  # reference: torch's own
# Where the C++ kernels win in spite of a launcher in Python: benchmarks/results.
# LayerNorm in float32 waits for memory, whoever computes it; erf of torch is fast on plain AVX2.
# A residual sum with slots, on one thread and on two of a Zen 5, is 1.7 and 1.4 times as fast as
# torch's in bfloat16, 1.3 and 1.1 in float16, 0.8 in float32; backward 1.1 to 1.2 in all of them.
CPU_WINS_IN: dict[str, dict[torch.dtype, int]] = {
    "bias_gelu": dict.fromkeys(KERNEL_DTYPES, 2**16),
    "bias_gelu_erf": {},
    "add_layer_norm": {torch.bfloat16: 2**20},
    "residual_add": {torch.bfloat16: 2**20},
    "residual_add_plain": {},
}
# Below, a call costs the host more than the kernels win: benchmarks/results.
# float16, which is not in that record, is computed as float32.
CPU_WINS_FROM = {torch.bfloat16: 48, torch.float32: 128, torch.float16: 128}
CPU_OPS = ATTENTION | LAYER
TRITON_OPS = ATTENTION | LAYER - {"bias_gelu_erf"}
# Channels: a program holds a whole row.
TRITON_MOST = dict.fromkeys(("add_layer_norm", *RESIDUAL.values()), 8192)
NATIVE, CUDA = native.MODULE, native.CUDA_MODULE
SM_80 = (8, 0)
CUDA_HEAD_DIMS = frozenset({64, 128})
TRITON_ON = "cpu" if INTERPRET else "cuda"
TRITON_DTYPES = frozenset({torch.float16, torch.float32}) if INTERPRET else KERNEL_DTYPES

# fmt: off
BACKENDS = (
    #       name         ops        device     dtypes         compute requires
    Backend("cuda",      ATTENTION, "cuda",    HALF,          None,   CUDA,     major=9,
            head_dims=CUDA_HEAD_DIMS, unmeasured=True),
    Backend("triton",    TRITON_OPS, TRITON_ON, TRITON_DTYPES, SM_80, "triton", unmeasured=True,
            most_channels=TRITON_MOST),
    Backend("cpu",       CPU_OPS,   "cpu",     KERNEL_DTYPES, None,   NATIVE,
            wins_from=CPU_WINS_FROM, wins_in=CPU_WINS_IN),
    Backend("sdpa",      EVERY),
    Backend("reference", EVERY | LAYER),
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


def implements(backend: str, op: str) -> bool:
    """Whether a backend has ``op`` at all, here or elsewhere; ``"auto"`` finds one that has."""
    return backend == "auto" or any(row.name == backend and op in row.ops for row in BACKENDS)


def select(call: Call, backend: str = "auto") -> str:
    """Return the name of the backend that will run ``call``.

    Raises:
        TypeError: ``backend`` is not a string.
        ValueError: ``backend`` is not a name of the table.
        BackendError: The requested backend cannot run this call.
    """
    check_name(backend)
    for row in BACKENDS:
        asked = row.name == backend or (backend == "auto" and not row.reserve(call))
        if asked and not row.reasons(call):
            return row.name
    raise BackendError(f"backend {backend!r} cannot run this call\n{format_table(call)}")


def format_table(call: Call | None = None) -> str:
    """The table as text: one line per backend, with every reason against it."""
    taken = next((row for row in BACKENDS if not row.reserve(call) and not row.reasons(call)), None)
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
    reserve = row.reserve(call)
    return f"only by name: {reserve}" if reserve else "yes"


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
    check_name(backend)
    if qkv is None:
        return format_table()
    check_bottleneck_attention(qkv, n_bottlenecks, lengths, update, scale, return_lse)
    return format_table(Call.of("bottleneck_attention", qkv))


_MISSING: dict[str, list[str]] = {}  # not functools.cache: Dynamo looks through it and warns


def _missing(requirement: str) -> list[str]:
    """Why a package, not imported, or our own kernels cannot be used; empty if they can."""
    if requirement not in _MISSING:
        if requirement == native.MODULE:
            _MISSING[requirement] = native.why_no_cpu_kernels()
        elif requirement == native.CUDA_MODULE:
            _MISSING[requirement] = native.why_no_cuda_kernels()
        else:
            found = importlib.util.find_spec(requirement) is not None
            _MISSING[requirement] = [] if found else [f"{requirement!r} is not installed"]
    return _MISSING[requirement]


def _untried_in_bfloat16() -> str | None:
    """``native.why_not_in_bfloat16``, of a machine that has our kernels."""
    return None if _missing(NATIVE) else native.why_not_in_bfloat16()


# What torch.compiler.assume_constant_result does, which would import torch._dynamo: one second.
_missing._dynamo_marked_constant = True  # type: ignore[attr-defined]
_untried_in_bfloat16._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _names(dtypes: frozenset[torch.dtype]) -> str:
    return ", ".join(sorted(map(str, dtypes)))


def _dots(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
