"""Memory: what global memory a kernel may touch, and the shared memory of the blocks that run."""

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mbt_fast.testing.ptx.step import Array, Step

SHARED_BASE = 1024  # the first address of shared memory; below it nothing is valid
LOWEST = 4096
PROCESS: Array = np.ctypeslib.as_array((ctypes.c_uint8 * (1 << 47)).from_address(LOWEST))


class Memory:
    """The parts of the process's memory that a kernel may touch: windows of address and bytes.

    Args:
        windows: Address and size of each. They may overlap; those that do become one.
    """

    def __init__(self, windows: Iterable[tuple[int, int]] = ()) -> None:
        """Sort the windows."""
        self.kept: list[Any] = []  # what owns the memory of windows that were added here
        self._set([(start, start + size) for start, size in windows if size > 0])

    @classmethod
    def of(cls, *tensors: Any) -> "Memory":
        """The elements of tensors on the CPU: from the first to the last of each."""
        windows = []
        for t in tensors:
            if t.numel():
                reach = sum((n - 1) * abs(s) for n, s in zip(t.shape, t.stride(), strict=True))
                windows.append((t.data_ptr(), (reach + 1) * t.element_size()))
        return cls(windows)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Windows as address and size."""
        return [(start, end - start) for start, end in self._spans]

    def add(self, array: Array) -> int:
        """Let a kernel touch an array, and keep the array; returns its address."""
        self.kept.append(array)
        start = int(array.ctypes.data)
        self._set([*self._spans, (start, start + array.nbytes)])
        return start

    def _set(self, spans: list[tuple[int, int]]) -> None:
        merged: list[tuple[int, int]] = []
        for start, end in sorted(spans):
            if merged and start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        self._spans = merged
        self._starts = np.array([start for start, _ in merged], np.int64)
        self._ends = np.array([end for _, end in merged], np.int64)

    def holds(self, address: Array, size: int) -> Array:
        """Whether bytes from an address on are in one window, element by element."""
        if not self._spans:
            return np.zeros(np.shape(address), bool)
        window = np.searchsorted(self._starts, address, "right") - 1
        return (window >= 0) & (address + size <= self._ends[window])

    def check(self, step: Step, address: Array, size: int) -> None:
        """Refuse addresses, int64 ``[n, 32]``, that are unaligned or out of bounds.

        Raises:
            PtxError: Names the instruction and the thread.
        """
        step.require(address % size == 0, f"the address must be a multiple of {size}")
        if not self.holds(address, size).all():
            inside = self.holds(address, size)
            bad = step.lanes & ~inside
            if bad.any():
                where = int(address[bad][0])
                step.fail(f"global address {where:#x} is outside of all tensors", bad)


class Shared:
    """Shared memory of blocks that run together.

    Fresh bytes are 0xFF: NaN in every float type.

    Attributes:
        rows: Bytes ``[blocks, stride]``; a block has ``size`` of them.
        base: Offset of each block's row in ``flat``.
        flat: The same bytes as one array.
    """

    def __init__(self, blocks: int, size: int) -> None:
        """Allocate for some blocks."""
        self.size = size
        stride = max(-(-size // 1024) * 1024, 1024)
        self.rows = np.full((blocks, stride), 0xFF, np.uint8)
        self.flat = self.rows.reshape(-1)
        self.base = np.arange(blocks, dtype=np.int64) * stride

    def places(self, step: Step, address: Array, size: int) -> Array:
        """Offsets in ``flat`` of addresses, int64 ``[n, 32]``, in the blocks of a group.

        Raises:
            PtxError: An active thread's address is unaligned or out of bounds.
        """
        offset = address - SHARED_BASE
        good = (offset >= 0) & (offset + size <= self.size)
        if not good.all():
            step.require(good, f"shared address is outside of the {self.size} bytes of the block")
            offset = np.where(good, offset, 0)
        aligned = address % size == 0
        if not aligned.all():
            step.require(aligned, f"the shared address must be a multiple of {size}")
            offset = np.where(aligned, offset, 0)
        return offset + self.base[self.row(step)]

    def row(self, step: Step) -> Array:
        """Which of ``rows`` the threads of a group see, ``[n, 1]``."""
        return step.block[:, None]

    def read(self, place: Array, kind: Any, count: int) -> Array:
        """Values ``[..., count]`` of a numpy type at offsets of ``flat``."""
        return gather(self.flat, place, kind, count)

    def write(self, place: Array, values: Array) -> None:
        """Put values ``[..., count]`` at offsets of ``flat``; generic writes all come here."""
        scatter(self.flat, place, values)


def gather(flat: Array, place: Array, kind: Any, count: int) -> Array:
    """Values ``[..., count]`` of a numpy type at aligned byte offsets."""
    whole = np.dtype(kind).itemsize * count
    usable = flat[: len(flat) // whole * whole].view(kind)
    return usable.reshape(-1, count)[place // whole]


def scatter(flat: Array, place: Array, values: Array) -> None:
    """Put values ``[..., count]`` at aligned byte offsets; of equal places the last stays."""
    count = values.shape[-1]
    whole = values.dtype.itemsize * count
    usable = flat[: len(flat) // whole * whole].view(values.dtype)
    usable.reshape(-1, count)[place // whole] = values


def global_places(address: Array) -> Array:
    """Offsets in ``PROCESS``."""
    return address - LOWEST


def vector_of(values: Sequence[Any], step: Step, kind: Any) -> Array:
    """Parts of a vector, each ``[n, 32]`` or a scalar, as ``[n, 32, parts]``."""
    out = np.empty((*step.shape, len(values)), kind)
    for position, value in enumerate(values):
        out[..., position] = value
    return out
