"""Compile every shipped kernel configuration for every architecture, without a GPU.

    python -m benchmarks.compile_ahead            print registers, spills, shared memory
    python -m benchmarks.compile_ahead --record   and write them to benchmarks/results/aot

The record is committed: a kernel that grows shows in a diff.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from tabulate import tabulate
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from mbt_fast.kernels import bottleneck_attention_bwd as bwd
from mbt_fast.kernels.bottleneck_attention_fwd import bottleneck_attention_fwd_kernel
from mbt_fast.kernels.table import ARCHS, HALF, KERNELS, SINGLE, Tiles, lookup

RECORD = Path(__file__).parent / "results" / "aot" / "triton.json"
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may have
ELEMENTS = {"bf16": HALF, "fp32": SINGLE}
KERNEL = {
    "fwd": bottleneck_attention_fwd_kernel,
    "fwd_mean": bottleneck_attention_fwd_kernel,
    "delta": bwd.bottleneck_attention_bwd_delta_kernel,
    "dkdv": bwd.bottleneck_attention_bwd_dkdv_kernel,
    "dq": bwd.bottleneck_attention_bwd_dq_kernel,
}
STREAMS = 2  # with lengths and all gradients, the heavier case
ALIGNED = [["tt.divisibility", 16]]


class Case(NamedTuple):
    """One kernel, as it is compiled for one architecture."""

    kernel: str
    element: str
    arch: int
    head_dim: int

    @property
    def tiles(self) -> Tiles:
        """What the table says."""
        return lookup(self.kernel, self.arch, ELEMENTS[self.element], self.head_dim)

    def __str__(self) -> str:
        """Name in the record."""
        return f"{self.kernel}-{self.element}-d{self.head_dim}-sm_{self.arch}"


class Resources(NamedTuple):
    """What the compiled kernel needs."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    wgmma: int  # instructions in the PTX


def cases() -> Iterator[Case]:
    """Every entry of the tile table, and a head dimension that is no power of two."""
    for kernel in KERNELS:
        for element in ELEMENTS:
            for arch in ARCHS:
                yield from (Case(kernel, element, arch, head_dim) for head_dim in (64, 80, 128))


def compile_case(case: Case) -> Resources:
    """Compile, and ask ptxas what it made of it."""
    source = _source(case)
    target = GPUTarget("cuda", case.arch, 32)
    options = {"num_warps": case.tiles.num_warps, "num_stages": case.tiles.num_stages}
    compiled = triton.compile(source, target=target, options=options)
    ptx = compiled.asm["ptx"]
    registers, spilled = _assemble(ptx, case.arch)
    return Resources(registers, spilled, compiled.metadata.shared, ptx.count("wgmma.mma_async"))


def _assemble(ptx: str, arch: int) -> tuple[int, int]:
    """Registers and spilled bytes, from the report of the assembler that Triton uses."""
    name = re.search(r"\.target (\S+)", ptx)
    if name is None:
        raise ValueError("ptx must name its target, got none")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={name[1].rstrip(',')}", str(path)]
        done = subprocess.run(
            [*command, "-o", "/dev/null"], capture_output=True, text=True, check=True
        )
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spills = re.search(r"(\d+) bytes spill stores", done.stderr)
    if registers is None or spills is None:
        raise ValueError(f"ptxas must report registers and spills, got {done.stderr!r}")
    return int(registers[1]), int(spills[1])


def _source(case: Case) -> ASTSource:
    """The kernel with types, constants and alignments as a launch would give them."""
    kernel, tiles = KERNEL[case.kernel], case.tiles
    constants: dict[str, Any] = {
        "M": STREAMS,
        "HAS_LENGTHS": 2**STREAMS - 1,
        "HAS_DLSE": 2**STREAMS - 1,
        "UPDATE_MEAN": case.kernel in ("fwd_mean", "delta"),
        "D": case.head_dim,
        "BLOCK_D": triton.next_power_of_2(case.head_dim),
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "PRECISION": "ieee" if case.element == "fp32" else "tf32",
    }
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: _type(name, case.element) for name in kernel.arg_names}
    signature.update(dict.fromkeys(constants, "constexpr"))
    aligned = {
        place: ALIGNED
        for index, name in enumerate(kernel.arg_names)
        if name.endswith(("_ptr", "_ptrs", "strides"))
        for place in _places(index, signature[name])
    }
    return ASTSource(kernel, signature, constants, aligned)


def _type(name: str, element: str) -> Any:
    types = {
        "lse_ptrs": "*fp32",
        "dlse_ptrs": "*fp32",
        "stats_ptrs": "*fp32",
        "delta_ptrs": "*fp32",
        "length_ptrs": "*i32",
        "strides": ("i64",) * 4,
        "dout_strides": ("i64",) * 3,
        "scale": "fp32",
        "qk_scale": "fp32",
    }
    kind = types.get(name, f"*{element}" if name.endswith(("_ptr", "_ptrs")) else "i32")
    per_stream = name.endswith(("_ptrs", "strides")) or name in ("rows", "tiles")
    return (kind,) * STREAMS if per_stream else kind


def _places(index: int, kind: Any) -> Iterator[tuple[int, ...]]:
    """Paths of all scalars in an argument that may be a tuple of tuples."""
    if isinstance(kind, tuple):
        for position, part in enumerate(kind):
            yield from ((index, *rest) for rest in _places(position, part))
    else:
        yield (index,)


def main() -> None:
    """Compile all, print a table, and record it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the committed record")
    args = parser.parse_args()
    found = {str(case): (case, compile_case(case)) for case in cases()}
    rows = [(name, *case.tiles, *resources) for name, (case, resources) in found.items()]
    print(tabulate(rows, headers=["kernel", *Tiles._fields, *Resources._fields]))
    if args.record:
        kernels = {name: resources._asdict() for name, (_, resources) in found.items()}
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        RECORD.write_text(json.dumps({"triton": triton.__version__, "kernels": kernels}, indent=1))


if __name__ == "__main__":
    main()
