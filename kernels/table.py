"""The tile table: one configuration per kernel, architecture, dtype width and head dimension.

Chosen by rule, not tuned at run time. All compile without spills; what each needs in registers and
shared memory is recorded in benchmarks/results/aot. None has been measured on a GPU yet.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Tiles(NamedTuple):
    """One configuration: a program owns ``block_m`` rows and walks in steps of ``block_n``."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


ARCHS = (80, 90, 100)
KERNELS = ("fwd", "delta", "dkdv", "dq")
HALF, SINGLE = 2, 4  # bytes of an element
HEAD_DIMS = (64, 128)  # a row serves head dimensions up to this one

# fmt: off
TABLE: dict[tuple[str, int, int], tuple[Tiles, Tiles, Tiles]] = {
    # kernel      bytes   D       sm_80                 sm_90                 sm_100
    ("fwd",      HALF,   64):  (Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 3)),
    ("fwd",      HALF,   128): (Tiles(64, 64, 8, 2),  Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 2)),
    ("fwd",      SINGLE, 64):  (Tiles(32, 32, 8, 2),  Tiles(32, 32, 8, 2),  Tiles(32, 32, 8, 2)),
    ("fwd",      SINGLE, 128): (Tiles(16, 32, 8, 1),  Tiles(16, 32, 8, 1),  Tiles(16, 32, 8, 1)),
    ("delta",    HALF,   64):  (Tiles(64, 64, 4, 1),  Tiles(64, 64, 4, 1),  Tiles(64, 64, 4, 1)),
    ("delta",    HALF,   128): (Tiles(64, 64, 4, 1),  Tiles(64, 64, 4, 1),  Tiles(64, 64, 4, 1)),
    ("delta",    SINGLE, 64):  (Tiles(32, 32, 8, 1),  Tiles(32, 32, 8, 1),  Tiles(32, 32, 8, 1)),
    ("delta",    SINGLE, 128): (Tiles(16, 16, 8, 1),  Tiles(16, 16, 8, 1),  Tiles(16, 16, 8, 1)),
    ("dkdv",     HALF,   64):  (Tiles(64, 32, 4, 2),  Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 2)),
    ("dkdv",     HALF,   128): (Tiles(64, 32, 8, 2),  Tiles(128, 32, 8, 2), Tiles(64, 32, 8, 2)),
    ("dkdv",     SINGLE, 64):  (Tiles(32, 32, 8, 1),  Tiles(32, 32, 8, 1),  Tiles(16, 32, 8, 1)),
    ("dkdv",     SINGLE, 128): (Tiles(16, 16, 4, 1),  Tiles(16, 32, 8, 1),  Tiles(16, 32, 8, 1)),
    ("dq",       HALF,   64):  (Tiles(64, 64, 4, 1),  Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 2)),
    ("dq",       HALF,   128): (Tiles(64, 64, 8, 1),  Tiles(128, 64, 8, 2), Tiles(64, 64, 8, 1)),
    ("dq",       SINGLE, 64):  (Tiles(32, 32, 8, 1),  Tiles(32, 32, 8, 1),  Tiles(32, 32, 8, 1)),
    ("dq",       SINGLE, 128): (Tiles(16, 16, 8, 1),  Tiles(16, 16, 8, 1),  Tiles(16, 16, 8, 1)),
}
# fmt: on


def tiles_for(kernel: str, tensor: Tensor) -> Tiles:
    """The configuration of a kernel for a tensor ``[..., D]``, by its device, dtype and ``D``."""
    return lookup(kernel, arch_of(tensor), tensor.element_size(), tensor.shape[-1])


def lookup(kernel: str, arch: int, itemsize: int, head_dim: int) -> Tiles:
    """The configuration for an architecture of ``ARCHS``."""
    limit = next(limit for limit in HEAD_DIMS if head_dim <= limit)
    return TABLE[kernel, itemsize, limit][ARCHS.index(arch)]


def arch_of(tensor: Tensor) -> int:
    """The column for a tensor's device: the portable sm_80 wherever no other is known to fit.

    So too on sm_86, sm_89 and sm_120, which have less shared memory, and in the interpreter.
    """
    if not tensor.is_cuda:
        return 80
    major, _ = torch.cuda.get_device_capability(tensor.device)
    return {9: 90, 10: 100}.get(major, 80)


def sum_parts(arch: int, itemsize: int) -> int:
    """In how many parts the forward keeps the sum of a row until its walk ends.

    On sm_90 each of eight neighbouring scores has its place in one thread, tile after tile: eight
    parts need no exchange between threads. Elsewhere they need more registers.
    """
    return 8 if arch == 90 and itemsize == HALF else 1


class RowTile(NamedTuple):
    """What a kernel of the layer takes at a time: ``block_r`` rows of ``block_c`` channels."""

    block_r: int
    block_c: int
    num_warps: int


NORM_CHANNELS = 8192  # the most that LayerNorm and residual sums take, which hold whole rows
GELU_CHANNELS = 512  # that GELU takes at a time: with 1024 its backward spills in float32
TILE_ELEMENTS = 2048


def row_tile(channels: int) -> RowTile:
    """The tile for rows of so many channels, by rule: 16 elements of a tile for each thread.

    Four warps are then as wide as a row of MBT-B, so that its weights need no other layout.
    """
    block_c = max(16, 1 << (channels - 1).bit_length())
    block_r = max(1, TILE_ELEMENTS // block_c)
    return RowTile(block_r, block_c, num_warps=block_r * block_c // 512)
