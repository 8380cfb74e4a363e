"""What nvcc made of the CUDA kernels: ptxas's report, and the machine code. No GPU is needed."""

import importlib.util
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from mbt_fast.ops import extension

WHY_NOT = extension.why_no_cuda_kernels()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason="; ".join(WHY_NOT) or "-")

REGISTERS = 65536 // 384 // 8 * 8  # of a thread at entry, three warp groups in a block
INSTANCES = [f"{element} {dim}" for element in ("bfloat16", "float16") for dim in (64, 128)]
FORWARD = {f"bottleneck_attention_fwd {instance}" for instance in INSTANCES}
KEYS = {
    f"bottleneck_attention_bwd_keys {instance} {adds}" for instance in INSTANCES for adds in (0, 1)
}
QUERIES = {f"bottleneck_attention_bwd_queries {instance}" for instance in INSTANCES}
SMALL = {f"bottleneck_attention_bwd_{name} {i}" for name in ("delta", "dq") for i in INSTANCES}
MEAN = {f"slots_mean {element}" for element in ("bfloat16", "float16")}


def test_build_names_compiler_architectures_and_sources():
    module = extension.cuda_module()
    assert "release" in module.compiler
    assert module.architectures.split()[0] == "sm_90a"
    assert re.fullmatch("[0-9a-f]{64}", module.sources)


def test_report_has_every_kernel_and_none_spills():
    report = extension.cuda_module().ptxas
    assert set(report) >= FORWARD | KEYS | QUERIES | SMALL | MEAN
    for name, (registers, stack, spilled) in report.items():
        assert registers <= REGISTERS, name
        assert (stack, spilled) == (0, 0), name


def test_ptxas_serialises_no_wgmma():
    """It would warn: C7510 and its neighbours."""
    assert extension.cuda_module().ptxas_warnings == []


def test_shared_memory_fits_a_block():
    needed = extension.cuda_module().shared_memory
    kernels = ("fwd", "bwd_keys", "bwd_queries")
    assert set(needed) == {
        f"bottleneck_attention_{name} {dim}" for name in kernels for dim in (64, 128)
    }
    assert all(0 < size <= 227 * 1024 for size in needed.values())


def cuobjdump():
    """From the CUDA toolkit, or from Triton, which brings its own."""
    found = shutil.which("cuobjdump")
    if found or importlib.util.find_spec("triton") is None:
        return found
    (package,) = importlib.util.find_spec("triton").submodule_search_locations
    return shutil.which("cuobjdump", path=str(Path(package) / "backends/nvidia/bin"))


@cache
def machine_code():
    """SASS of every kernel, by its mangled name."""
    command = [cuobjdump(), "-sass", extension.cuda_module().__file__]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions = re.split(r"\n\s*Function : ", listing)[1:]
    return {function.split("\n", 1)[0].strip(): function for function in functions}


needs_cuobjdump = pytest.mark.skipif(
    cuobjdump() is None, reason="cuobjdump is not installed, neither with CUDA nor with Triton"
)


@needs_cuobjdump
def test_no_kernel_uses_local_memory():
    assert len(machine_code()) >= len(FORWARD | KEYS | QUERIES | SMALL | MEAN)
    for name, code in machine_code().items():
        assert not re.search(r"\b(LDL|STL)\b", code), name


@needs_cuobjdump
@pytest.mark.parametrize(
    "instruction",
    [
        "HGMMA.64x208x16",  # the products, at their full width
        "HGMMA.64x176x16",
        "HGMMA.64x64x16",
        "HGMMA.64x128x16",
        "UTMALDG.5D",  # the copy engine
        "SYNCS.ARRIVE.TRANS64",  # mbarriers
        "SYNCS.PHASECHK.TRANS64.TRYWAIT",
        "USETMAXREG",
        "MUFU.EX2",
    ],
)
def test_forward_has_hoppers_instructions(instruction):
    forward = [code for name, code in machine_code().items() if "bottleneck_attention_fwd" in name]
    assert len(forward) == len(FORWARD)
    assert any(instruction in code for code in forward)
    assert all(instruction.split(".")[0] in code for code in forward)


@needs_cuobjdump
@pytest.mark.parametrize(
    "instruction",
    [
        "HGMMA.64x128x16",
        "HGMMA.64x64x16",
        "UTMALDG.5D",
        "UBLKCP",  # the copy engine, without a tensor map
        "SYNCS.ARRIVE.TRANS64",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT",
        "USETMAXREG",
        "MUFU.EX2",
    ],
)
def test_backward_has_hoppers_instructions(instruction):
    keys = [code for name, code in machine_code().items() if "bwd_keys" in name]
    assert len(keys) == len(KEYS)
    assert all(instruction in code for code in keys)


@needs_cuobjdump
def test_dq_is_added_by_the_copy_engine_but_in_the_deterministic_variant():
    keys = {name: code for name, code in machine_code().items() if "bwd_keys" in name}
    for name, code in keys.items():
        assert ("UBLKRED.G.S.ADD.F32" in code) == ("ELb1" in name), name
    assert not any("RED" in code for name, code in machine_code().items() if "bwd_queries" in name)


@needs_cuobjdump
def test_products_run_side_by_side_with_the_softmax():
    """A wait behind every product would mean that the compiler put it there."""
    for name, code in machine_code().items():
        products, waits = code.count("HGMMA."), code.count("WARPGROUP.DEPBAR")
        assert waits * 4 < products or products == 0, name


@needs_cuobjdump
def test_producer_keeps_to_the_registers_that_it_has_left():
    """What lies behind its last exit are slow paths of the consumers."""
    pipelines = {name: code for name, code in machine_code().items() if "USETMAXREG" in code}
    assert len(pipelines) == len(FORWARD | KEYS | QUERIES)
    for name, code in pipelines.items():
        assert "USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xf0" in code  # 240
        producer = code.split("USETMAXREG.DEALLOC.CTAPOOL 0x18", 1)[1]  # 24
        producer = producer[: producer.rindex("EXIT")]
        assert max(int(number) for number in re.findall(r"\bR(\d+)\b", producer)) < 24, name
