"""What the launchers share: a call's tensors as kernel arguments."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

# What every kernel is compiled with: products and sums fused to one rounding. Triton has done so by
# default, and announces that it will not.
OPTIONS = {"enable_fp_fusion": True}

# The kernels of attention number rows by int32, and round up to whole tiles of at most 128.
MAX_ROWS = 2**31 - 128


class Streams(NamedTuple):
    """The streams of a call as kernel arguments: longest first, so that short ones fill gaps."""

    order: list[int]  # position in the launch -> position in the call
    qkv: list[Tensor]
    lengths: list[Tensor]  # a stream without lengths has any tensor of the right dtype
    has_lengths: int  # bit m: the m-th stream in the launch has lengths

    @classmethod
    def of(cls, qkv: Sequence[Tensor], lengths: Sequence[Tensor | None]) -> "Streams":
        """Order the streams; copy those whose last stride is not 1.

        Raises:
            ValueError: A stream has more than ``MAX_ROWS`` rows.
        """
        longest = max(stream.shape[1] for stream in qkv)
        if longest > MAX_ROWS:
            raise ValueError(f"qkv must have at most {MAX_ROWS} rows in a stream, got {longest}")
        order = sorted(range(len(qkv)), key=lambda m: -qkv[m].shape[1])
        valid, bits = given_lengths([lengths[m] for m in order], qkv[0])
        return cls(
            order=order,
            qkv=[last_dim_contiguous(qkv[m]) for m in order],
            lengths=list(valid),
            has_lengths=bits,
        )

    def rows(self) -> tuple[int, ...]:
        """``S_m`` in the order of the launch."""
        return tuple(stream.shape[1] for stream in self.qkv)

    def arrange(self, tensors: Sequence[Any]) -> list[Any]:
        """From the order of the call to that of the launch."""
        return [tensors[m] for m in self.order]


def given(
    entries: Sequence[Tensor | None], anything: Tensor, ready: Callable[[Tensor], Tensor]
) -> tuple[tuple[Tensor, ...], int]:
    """Tensors that may be absent, as kernel arguments: bit m says that the m-th is there.

    Args:
        entries: A tensor or ``None`` per stream.
        anything: Stands where there is none; only its dtype, and its rank, matter.
        ready: Gives a tensor the layout that the kernel reads.
    """
    tensors = tuple(anything if entry is None else ready(entry) for entry in entries)
    return tensors, sum(1 << m for m, entry in enumerate(entries) if entry is not None)


def given_lengths(lengths: Sequence[Tensor | None], like: Tensor) -> tuple[tuple[Tensor, ...], int]:
    """How many own tokens are valid, where a stream has lengths."""
    return given(lengths, like.new_empty(0, dtype=torch.int32), Tensor.contiguous)


def given_masks(keep: Sequence[Tensor | None], like: Tensor) -> tuple[tuple[Tensor, ...], int]:
    """Which examples keep their branches, as bytes."""
    anything = like.new_empty(0, dtype=torch.uint8)
    return given(keep, anything, lambda mask: mask.contiguous().view(torch.uint8))


def last_dim_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy if its last dimension is strided."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def one_dtype(parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Parameters of one dtype, contiguous: a tuple of pointers has one."""
    same = len({parameter.dtype for parameter in parameters}) == 1
    return tuple((p if same else p.float()).contiguous() for p in parameters)


def strides_of(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    """Strides but the last; 0 where there is one element, which spares a specialisation."""
    return tuple(
        tuple(
            stride if size > 1 else 0
            for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
        )
        for tensor in tensors
    )


def numbers(values: Iterable[int]) -> tuple[int, ...]:
    """Integers from 0 on that vary from call to call, as a tuple that a kernel takes.

    Triton compiles anew for an integer of a tuple that is 1 or divisible by 16, whatever
    ``do_not_specialize`` says of the tuple (3.6 to 3.9). So each goes as an odd number from 3 on;
    ``tiles.number`` undoes it.
    """
    return tuple(2 * value + 3 for value in values)


def block_d(head_dim: int) -> int:
    """Channels of a tile: the next power of two."""
    return max(16, triton.next_power_of_2(head_dim))


def precision_of(dtype: torch.dtype) -> str:
    """Float32 products are exact, not TF32: results must not depend on the backend."""
    return "ieee" if dtype == torch.float32 else "tf32"


def device_of(tensor: Tensor) -> AbstractContextManager:
    """Launch where the tensors are, whichever device is current."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
