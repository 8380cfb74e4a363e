"""The Triton kernels, as they are compiled for each architecture: every entry of the tile table."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mbt_fast.kernels import bottleneck_attention_bwd as bwd
from mbt_fast.kernels.add_layer_norm_bwd import add_layer_norm_bwd_kernel
from mbt_fast.kernels.add_layer_norm_fwd import add_layer_norm_fwd_kernel
from mbt_fast.kernels.bias_gelu_bwd import bias_gelu_bwd_kernel
from mbt_fast.kernels.bias_gelu_fwd import bias_gelu_fwd_kernel
from mbt_fast.kernels.bottleneck_attention_fwd import (
    SLOT_TILE,
    bottleneck_attention_fwd_kernel,
    bottleneck_attention_slots_kernel,
)
from mbt_fast.kernels.column_sums import SUM_TILE, column_sums_kernel
from mbt_fast.kernels.launch import OPTIONS
from mbt_fast.kernels.residual_add_bwd import residual_add_bwd_kernel
from mbt_fast.kernels.residual_add_fwd import residual_add_fwd_kernel
from mbt_fast.kernels.table import (
    ARCHS,
    GELU_CHANNELS,
    HALF,
    NORM_CHANNELS,
    SINGLE,
    RowTile,
    Tiles,
    lookup,
    row_tile,
    sum_parts,
)

ELEMENTS = {"bf16": HALF, "fp32": SINGLE}
ATTENTION = {
    "fwd": bottleneck_attention_fwd_kernel,
    "fwd_mean": bottleneck_attention_fwd_kernel,
    "delta": bwd.bottleneck_attention_bwd_delta_kernel,
    "dkdv": bwd.bottleneck_attention_bwd_dkdv_kernel,
    "dq": bwd.bottleneck_attention_bwd_dq_kernel,
}
LAYER = {
    "norm_fwd": add_layer_norm_fwd_kernel,
    "norm_bwd": add_layer_norm_bwd_kernel,
    "residual_fwd": residual_add_fwd_kernel,
    "residual_bwd": residual_add_bwd_kernel,
    "gelu_fwd": bias_gelu_fwd_kernel,
    "gelu_bwd": bias_gelu_bwd_kernel,
    "column_sums": column_sums_kernel,
    "slots": bottleneck_attention_slots_kernel,
}
FIXED = {"column_sums": SUM_TILE, "slots": SLOT_TILE}
STREAMS = 2  # with lengths, masks and all gradients, the heavier case
ALIGNED = [["tt.divisibility", 16]]


class Case(NamedTuple):
    """One kernel, as it is compiled for one architecture."""

    kernel: str
    element: str
    arch: int
    width: int  # head dimension, or channels of the kernels of the layer

    @property
    def tiles(self) -> Tiles | RowTile:
        """What the table says."""
        if self.kernel in ATTENTION:
            entry = self.kernel.removesuffix("_mean")
            return lookup(entry, self.arch, ELEMENTS[self.element], self.width)
        if self.kernel in FIXED:
            return FIXED[self.kernel]
        return row_tile(min(self.width, GELU_CHANNELS) if "gelu" in self.kernel else self.width)

    def __str__(self) -> str:
        """Name in the record."""
        letter = "d" if self.kernel in ATTENTION else "c"
        return f"{self.kernel}-{self.element}-{letter}{self.width}-sm_{self.arch}"


def cases() -> Iterator[Case]:
    """Every entry of the tile table, and widths that are no power of two; MBT-B's channels."""
    widths: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(ATTENTION, (64, 80, 128)),
        **dict.fromkeys(("norm_fwd", "norm_bwd"), (768, NORM_CHANNELS)),
        **dict.fromkeys(("residual_fwd", "residual_bwd"), (768, NORM_CHANNELS)),
        "slots": (768,),
        **dict.fromkeys(("gelu_fwd", "gelu_bwd", "column_sums"), (3072,)),
    }
    for kernel, sizes in widths.items():
        for element in ELEMENTS:
            for arch in ARCHS:
                yield from (Case(kernel, element, arch, width) for width in sizes)


def compile_case(case: Case, tiles: Tiles | RowTile | None = None) -> Any:
    """What Triton makes of a case, with other tiles than the table's if some are given."""
    tiles = tiles or case.tiles
    target = GPUTarget("cuda", case.arch, 32)
    fixed = ("num_warps", "num_stages")
    options = {name: value for name, value in tiles._asdict().items() if name in fixed}
    return triton.compile(_source(case, tiles), target=target, options=OPTIONS | options)


def _source(case: Case, tiles: Tiles | RowTile) -> ASTSource:
    """The kernel with types, constants and alignments as a launch would give them."""
    kernel = (ATTENTION | LAYER)[case.kernel]
    constants: dict[str, Any] = {
        "M": STREAMS,
        "K": 2 * STREAMS,
        "UPDATE_MEAN": case.kernel in ("fwd_mean", "delta"),
        "SHARES": True,
        "WRITES_SUM": 2**STREAMS - 1,
        "HAS_BIAS": True,
        "D": case.width,
        "C": case.width,
        "BLOCK_D": triton.next_power_of_2(case.width),
        "SUM_PARTS": sum_parts(case.arch, ELEMENTS[case.element]),
        "PRECISION": "ieee" if case.element == "fp32" else "tf32",
    }
    flags = [name for name in kernel.arg_names if name.startswith("HAS_") and name != "HAS_BIAS"]
    constants |= dict.fromkeys(flags, 2**STREAMS - 1)
    constants |= {name.upper(): value for name, value in tiles._asdict().items()}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: _type(name, case) for name in kernel.arg_names}
    signature.update(dict.fromkeys(constants, "constexpr"))
    aligned = {
        place: ALIGNED
        for index, name in enumerate(kernel.arg_names)
        if name.endswith(("_ptr", "_ptrs", "strides"))
        for place in _places(index, signature[name])
    }
    return ASTSource(kernel, signature, constants, aligned)


def _type(name: str, case: Case) -> Any:
    in_attention = case.kernel in ATTENTION
    types = {
        "lse_ptrs": "*fp32",
        "dlse_ptrs": "*fp32",
        "stats_ptrs": "*fp32",
        "delta_ptrs": "*fp32",
        "partial_ptr": "*fp32",
        "length_ptrs": "*i32",
        "keep_ptrs": "*u8",
        "strides": ("i64",) * (4 if in_attention else 2),
        "dout_strides": ("i64",) * 3,
        "branch_strides": ("i64",) * 2,
        "dnormed_strides": ("i64",) * 2,
        "dsum_strides": ("i64",) * 2,
        "scale": "fp32",
        "qk_scale": "fp32",
        "eps": "fp32",
    }
    kind = types.get(name, f"*{case.element}" if name.endswith(("_ptr", "_ptrs")) else "i32")
    if case.kernel == "column_sums":
        return (kind,) * 2 * STREAMS if name in ("out_ptrs", "firsts", "counts") else kind
    counts = ("tiles", "chunks") if "gelu" in case.kernel else ("rows", "tiles", "chunks")
    per_stream = name.endswith(("_ptrs", "strides")) or name in counts
    return (kind,) * STREAMS if per_stream else kind


def _places(index: int, kind: Any) -> Iterator[tuple[int, ...]]:
    """Paths of all scalars in an argument that may be a tuple of tuples."""
    if isinstance(kind, tuple):
        for position, part in enumerate(kind):
            yield from ((index, *rest) for rest in _places(position, part))
    else:
        yield (index,)
