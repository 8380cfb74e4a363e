"""The record: per compiled kernel what it needs, and what a turn of its loops asks for."""

import json
import re
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import triton

from benchmarks.aot.calibration import ARCH, TILES, compile_kernel
from benchmarks.aot.cases import Case, cases, compile_case
from benchmarks.aot.sass import dump, instructions, listings
from benchmarks.aot.turns import PRODUCTS, Resources, blocks_per_multiprocessor, turns
from benchmarks.records import AHEAD

PATHS = {"triton": AHEAD, "cuda": AHEAD.with_name("cuda.json")}
MANGLED = re.compile(r"\d([a-z_]+)_kernel(\S*)")
CONSUMERS = 8  # warps of a CUDA block that multiply
WARPS = {"fwd": 12, "bwd_keys": 12, "bwd_queries": 12, "bwd_delta": 8, "bwd_dq": 8, "slots_mean": 4}
Entry = dict[str, Any]


def triton_entry(case: Case) -> Entry:
    """Compile a case, and read its machine code."""
    return compiled_entry(compile_case(case), case.tiles.num_warps, case.arch)


def compiled_entry(compiled: Any, warps: int, arch: int) -> Entry:
    """Read what Triton compiled."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        (listing,) = listings(path).values()
        registers, stack = usage(path)
    needs = Resources(registers, stack, compiled.metadata.shared)
    return entry(listing, needs, warps, warps, arch)


def usage(cubin: Path) -> tuple[int, int]:
    """Registers, and bytes of the stack: what the assembler did not fit.

    Raises:
        ValueError: ``cuobjdump`` does not say so.
    """
    found = re.search(r"REG:(\d+) STACK:(\d+)", dump("-res-usage", cubin))
    if found is None:
        raise ValueError(f"cuobjdump must report registers and stack of {cubin}, got neither")
    return int(found[1]), int(found[2])


def entry(listing: str, needs: Resources, warps: int, multiplying: int, arch: int) -> Entry:
    """What the record says of one kernel, whose block has so many warps, and so many multiply."""
    loops = turns(listing, arch, multiplying) if arch in PRODUCTS else []
    code = instructions(listing)
    return {
        **needs._asdict(),
        "blocks": blocks_per_multiprocessor(needs, warps, arch),
        "products": sum(one.opcode.startswith(PRODUCTS.get(arch, "UTCHMMA")) for one in code),
        "waits": sum(one.opcode.startswith("WARPGROUP.DEPBAR") for one in code),
        "turns": [turn._asdict() for turn in loops],
    }


def triton_record() -> dict[str, Any]:
    """Every Triton kernel of every architecture."""
    return {
        "triton": triton.__version__,
        "calibration": compiled_entry(compile_kernel(), TILES.num_warps, ARCH),
        "kernels": {str(case): triton_entry(case) for case in cases()},
    }


def cuda_record() -> dict[str, Any]:
    """Every CUDA kernel, from the extension that nvcc built.

    Raises:
        ImportError: It is not built.
    """
    module = import_module("mbt_fast._cuda")
    code = {_readable(name): listing for name, listing in listings(str(module.__file__)).items()}
    kernels = {}
    for name, (registers, stack, spilled) in sorted(module.ptxas.items()):
        shared = module.shared_memory.get(" ".join(name.split()[::2]), 0)
        needs = Resources(registers, max(stack, spilled), shared)
        warps = WARPS[name.split()[0].removeprefix("bottleneck_attention_")]
        kernels[name] = entry(code[name], needs, warps, CONSUMERS, 90)
    return {"nvcc": module.compiler, "kernels": kernels}


def _readable(mangled: str) -> str:
    """A kernel's name and the arguments of its template, as ``csrc/cuda/ptxas_report.py`` has them.

    Raises:
        ValueError: The name is no kernel's.
    """
    found = MANGLED.search(mangled)
    if found is None:
        raise ValueError(f"a kernel's name must end in _kernel, got {mangled}")
    given = re.findall(r"Bfloat16|Float16|(?<=L[ib])\d+", found[2].partition("EEEv")[0])
    return " ".join([found[1], *map(str.lower, given)])


def write(path: Path, record: dict[str, Any]) -> None:
    """As text that shows a change of one kernel in one line."""
    kernels = record.pop("kernels")
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in kernels.items())
    head = json.dumps(record, indent=1)[:-2]
    path.write_text(f'{head},\n "kernels": {{\n{rows}\n }}\n}}\n')
