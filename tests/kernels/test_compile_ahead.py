"""Every shipped Triton configuration compiles for every architecture, without a GPU.

Registers, spills and shared memory are recorded in ``benchmarks/results/aot/triton.json``, so that
a kernel that grows shows in a diff. The record is written anew, in one process, by
``MBT_FAST_RECORD=1 pytest tests/kernels/test_compile_ahead.py``.
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mbt_fast.ops.dispatch import INTERPRET

triton = pytest.importorskip("triton", reason="triton is not installed")
if INTERPRET:
    pytest.skip("TRITON_INTERPRET=1 replaces the compiler", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mbt_fast.kernels import bottleneck_attention_bwd as bwd  # noqa: E402
from mbt_fast.kernels.add_layer_norm_bwd import add_layer_norm_bwd_kernel  # noqa: E402
from mbt_fast.kernels.add_layer_norm_fwd import add_layer_norm_fwd_kernel  # noqa: E402
from mbt_fast.kernels.bias_gelu_bwd import bias_gelu_bwd_kernel  # noqa: E402
from mbt_fast.kernels.bias_gelu_fwd import bias_gelu_fwd_kernel  # noqa: E402
from mbt_fast.kernels.bottleneck_attention_fwd import bottleneck_attention_fwd_kernel  # noqa: E402
from mbt_fast.kernels.column_sums import SUM_TILE, column_sums_kernel  # noqa: E402
from mbt_fast.kernels.launch import OPTIONS  # noqa: E402
from mbt_fast.kernels.residual_add_bwd import residual_add_bwd_kernel  # noqa: E402
from mbt_fast.kernels.residual_add_fwd import residual_add_fwd_kernel  # noqa: E402
from mbt_fast.kernels.table import (  # noqa: E402
    ARCHS,
    GELU_CHANNELS,
    HALF,
    KERNELS,
    NORM_CHANNELS,
    SINGLE,
    RowTile,
    Tiles,
    lookup,
    row_tile,
)

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "aot" / "triton.json"
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may have
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
}
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
            return lookup(self.kernel, self.arch, ELEMENTS[self.element], self.width)
        if self.kernel == "column_sums":
            return SUM_TILE
        return row_tile(min(self.width, GELU_CHANNELS) if "gelu" in self.kernel else self.width)

    def __str__(self) -> str:
        """Name in the record."""
        letter = "d" if self.kernel in ATTENTION else "c"
        return f"{self.kernel}-{self.element}-{letter}{self.width}-sm_{self.arch}"


class Resources(NamedTuple):
    """What the compiled kernel needs."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    wgmma: int  # instructions in the PTX


def cases() -> Iterator[Case]:
    """Every entry of the tile table, and widths that are no power of two; MBT-B's channels."""
    widths: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(KERNELS, (64, 80, 128)),
        **dict.fromkeys(("norm_fwd", "norm_bwd"), (768, NORM_CHANNELS)),
        **dict.fromkeys(("residual_fwd", "residual_bwd"), (768, NORM_CHANNELS)),
        **dict.fromkeys(("gelu_fwd", "gelu_bwd", "column_sums"), (3072,)),
    }
    for kernel, sizes in widths.items():
        for element in ELEMENTS:
            for arch in ARCHS:
                yield from (Case(kernel, element, arch, width) for width in sizes)


def compile_case(case: Case) -> Resources:
    """Compile, and read from the machine code what it needs."""
    source = _source(case)
    target = GPUTarget("cuda", case.arch, 32)
    fixed = ("num_warps", "num_stages")
    options = {name: value for name, value in case.tiles._asdict().items() if name in fixed}
    compiled = triton.compile(source, target=target, options=OPTIONS | options)
    registers, spilled = _usage(compiled.asm["cubin"])
    products = compiled.asm["ptx"].count("wgmma.mma_async")
    return Resources(registers, spilled, compiled.metadata.shared, products)


def most_registers(case: Case) -> int:
    """Registers that a thread may have.

    A kernel that has fewer and spills a few bytes has not met this limit: the assembler of Triton
    3.9 gives up two registers where this lets one more block run. The record of the pinned version
    has no spill at all.
    """
    return min(255, 65536 // (32 * case.tiles.num_warps))


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of the stack: what Triton's own call of the assembler did not fit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    if found is None:
        raise ValueError(f"cuobjdump must report registers and stack, got {done.stdout!r}")
    return int(found[1]), int(found[2])


def _source(case: Case) -> ASTSource:
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
        "PRECISION": "ieee" if case.element == "fp32" else "tf32",
    }
    flags = [name for name in kernel.arg_names if name.startswith("HAS_") and name != "HAS_BIAS"]
    constants |= dict.fromkeys(flags, 2**STREAMS - 1)
    constants |= {name.upper(): value for name, value in case.tiles._asdict().items()}
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


CASES = {str(case): case for case in cases()}
WRITES = os.environ.get("MBT_FAST_RECORD") == "1"


@pytest.fixture(scope="module")
def record():
    """The committed record; with ``MBT_FAST_RECORD=1`` what is found replaces it."""
    if not WRITES:
        yield json.loads(RECORD.read_text())
        return
    found = {"triton": triton.__version__, "kernels": {}}
    yield found
    RECORD.write_text(json.dumps(found, indent=1))


@pytest.mark.aot
@pytest.mark.parametrize("name", CASES)
def test_compiles_without_spills_and_as_recorded(name, record):
    case = CASES[name]
    found = compile_case(case)
    assert found.spilled_bytes == 0 or found.registers < most_registers(case)
    assert found.shared_bytes <= SHARED_MEMORY[case.arch]
    products = case.kernel in ATTENTION and case.kernel != "delta"
    on_tensor_cores = products and case.element != "fp32"
    assert (found.wgmma > 0) == (case.arch == 90 and on_tensor_cores)
    if WRITES:
        record["kernels"][name] = found._asdict()
    if triton.__version__ != record["triton"]:
        pytest.skip(f"the record is of Triton {record['triton']}, this is {triton.__version__}")
    assert found.spilled_bytes == 0
    message = f"write the record anew, and look at the difference: see {Path(__file__).name}"
    assert found._asdict() == record["kernels"][name], message


@pytest.mark.aot
def test_record_has_no_other_kernels(record):
    assert set(record["kernels"]) == set(CASES)
