"""What an entry describes, and ``benchmarks.measure`` measures: cases of variants."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to do the work of a case.

    Attributes:
        run: Does it once; its first call may prepare something. ``None``: FLOPs are all there is.
        flops: Useful FLOPs of a call, if they are known.
        attention_flops: Those of them that are attention's two products.
        bytes: What a call must read and write at least, if memory is what bounds it.
        saves: The part of ``run`` that keeps tensors for the backward, to count them.
        apart_from: Tensors that exist in any case, and are not counted as kept.
        compiled: Then its operators cannot be counted on a CPU.
        replayable: Whether it may be captured in a CUDA graph.
    """

    run: Run | None
    flops: int | None = None
    attention_flops: int | None = None
    bytes: int | None = None
    saves: Run | None = None
    apart_from: tuple[torch.Tensor, ...] = ()
    compiled: bool = False
    replayable: bool = True


Variants = Callable[[], Mapping[str, Variant]]  # allocates and builds them


@dataclass(frozen=True, kw_only=True)
class Case:
    """Work that all variants do, or pay for; they are timed in interleaved rounds.

    Attributes:
        name: What is measured.
        mode: ``"forward"``, ``"backward"`` or ``"step"``.
        shape: Numbers that say how large it is.
        dtype: Of inputs and weights.
        variants: Allocates and builds them; called when the case's turn has come.
        baseline: The variant that ratios are relative to, if there is one.
        threads: Of torch on the CPU; ``None`` leaves them.
        graph: On a GPU, replay each variant from a CUDA graph as well.
        launches: Whether to count them, which takes a profiler on a GPU.
        around: Entered while the case is measured.
        timed: ``False`` counts memory, operators and FLOPs only.
    """

    name: str
    mode: str
    shape: dict[str, Any]
    dtype: torch.dtype
    variants: Variants
    baseline: str | None = None
    threads: int | None = None
    graph: bool = False
    launches: bool = True
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    timed: bool = True


class Scope(NamedTuple):
    """Which cases are wanted."""

    device: torch.device
    smoke: bool = False  # one small case of each kind

    @property
    def gpu(self) -> bool:
        """Whether there is one."""
        return self.device.type == "cuda"


Cases = Callable[[Scope], Iterator[Case]]
