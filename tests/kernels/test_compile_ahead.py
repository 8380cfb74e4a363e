"""Every shipped Triton configuration compiles for every architecture, without a GPU.

Registers, spills and shared memory are recorded in ``benchmarks/results/aot/triton.json``, so that
a kernel that grows shows in a diff. The record is written anew, in one process, by
``MBT_FAST_RECORD=1 pytest tests/kernels/test_compile_ahead.py``.
"""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from mbt_fast.ops.dispatch import INTERPRET

triton = pytest.importorskip("triton", reason="triton is not installed")
if INTERPRET:
    pytest.skip("TRITON_INTERPRET=1 replaces the compiler", allow_module_level=True)

from benchmarks.aot.cases import ATTENTION, Case, cases, compile_case  # noqa: E402
from benchmarks.aot.sass import dump  # noqa: E402

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "aot" / "triton.json"
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may have


class Resources(NamedTuple):
    """What the compiled kernel needs."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    wgmma: int  # instructions in the PTX


def resources(case: Case) -> Resources:
    """Compile, and read from the machine code what it needs."""
    compiled = compile_case(case)
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
        found = re.search(r"REG:(\d+) STACK:(\d+)", dump("-res-usage", path))
    if found is None:
        raise ValueError("cuobjdump must report registers and stack, got none")
    return int(found[1]), int(found[2])


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
    found = resources(case)
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
