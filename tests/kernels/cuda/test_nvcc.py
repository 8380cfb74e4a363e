"""What nvcc made of the CUDA kernels: ptxas's report, and the machine code. No GPU is needed."""

import json
import re
from collections import Counter

import pytest

from benchmarks.aot.sass import cuobjdump, inner_loops, listings
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


def machine_code():
    """SASS of every kernel, by its mangled name."""
    return listings(extension.cuda_module().__file__)


needs_cuobjdump = pytest.mark.skipif(
    cuobjdump() is None, reason="cuobjdump is not installed, neither with CUDA nor with Triton"
)


@needs_cuobjdump
def test_machine_code_is_as_recorded():
    pytest.importorskip("triton", reason="the record's module compiles Triton kernels, too")
    from benchmarks.aot.record import PATHS, cuda_record

    record, found = json.loads(PATHS["cuda"].read_text()), cuda_record()
    if found["nvcc"] != record["nvcc"]:
        pytest.skip(f"the record is of {record['nvcc']}, this is {found['nvcc']}")
    message = "write the record anew with python -m benchmarks.aot cuda predictions"
    assert found["kernels"] == record["kernels"], message


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


def walks_along_keys(code, dim):
    """The loops, by their tile of keys: scores are that wide, and outputs as wide as ``dim``."""
    found = {}
    for loop in inner_loops(code, "HGMMA"):
        opcodes = " ".join({one.opcode for one in loop})
        keys = set(map(int, re.findall(r"HGMMA\.64x(\d+)", opcodes))) - {dim}
        if keys:  # or else a slow path's branch back to the last product of an item
            found[keys.pop()] = loop
    return found


def exponentials_under_a_product(loop):
    """How many there are between the wait for scores and the wait for the product behind them."""
    waits = [i for i, one in enumerate(loop) if one.opcode.startswith("WARPGROUP.DEPBAR")]
    (start,) = (i for i in waits if loop[i].operands == "gsb0, 0x1")
    end = next(i for i in waits if i > start)
    assert loop[end].operands == "gsb0, 0x0"
    return sum(one.opcode.startswith("MUFU.EX2") for one in loop[start:end])


@needs_cuobjdump
@pytest.mark.parametrize("dim", [64, 128])
def test_exponentials_of_the_forward_hide_the_product_with_values(dim):
    """ptxas may move a wait; the source says nothing about the order in the machine code."""
    tiles = {64: {128, 176, 208}, 128: {112, 144, 176}}[dim]
    kernels = [
        code
        for name, code in machine_code().items()
        if "bottleneck_attention_fwd" in name and f"Li{dim}E" in name
    ]
    assert len(kernels) == 2  # elements
    for code in kernels:
        walks = walks_along_keys(code, dim)
        assert set(walks) == tiles
        hidden = {keys: exponentials_under_a_product(loop) for keys, loop in walks.items()}
        # Of a thread's share, which is keys / 2; multiply-adds compute the others.
        assert all(count >= 0.9 * keys // 2 for keys, count in hidden.items()), hidden


@needs_cuobjdump
def test_forward_masks_only_chunks_that_hold_the_end_of_a_stream():
    """A branch for each chunk of eight keys leaves all those before it alone."""
    forwards = {name: c for name, c in machine_code().items() if "bottleneck_attention_fwd" in name}
    assert len(forwards) == len(FORWARD)
    for name, code in forwards.items():
        for keys, loop in walks_along_keys(code, 128 if "Li128E" in name else 64).items():
            targets = Counter(one.target for one in loop if one.target is not None)
            ((behind, branches),) = targets.most_common(1)
            assert branches >= keys // 8 - 1, name  # none is needed behind the first chunk
            masks = [i for i, one in enumerate(loop) if "-INF" in one.operands]
            following = next(one for one in loop[masks[0] :] if one.target is not None)
            assert following.target == behind
            assert loop.index(following) - masks[0] < 16, name


def exponentials_of(loop):
    """How many there are, and how many of them run while a product is in flight."""
    count = hidden = in_flight = 0
    for one in loop:
        if one.opcode.startswith("HGMMA"):
            in_flight += 1
        elif one.opcode.startswith("WARPGROUP.DEPBAR"):
            in_flight = min(in_flight, int(one.operands.removeprefix("gsb0, "), 16))  # groups
        elif one.opcode.startswith("MUFU.EX2"):
            count += 1
            hidden += in_flight > 0
    return count, hidden


@needs_cuobjdump
def test_exponentials_of_the_backward_run_beside_products():
    walks = {name: c for name, c in machine_code().items() if "bwd_keys" in name or "bwd_q" in name}
    assert len(walks) == len(KEYS | QUERIES)
    for name, code in walks.items():
        (loop,) = inner_loops(code, "HGMMA")
        count, hidden = exponentials_of(loop)
        wide = "Li128E" in name and "bwd_keys" in name
        assert count == (32 if wide else 64), name  # a thread's share of a step
        assert hidden >= count - 1, name  # ptxas may put the first one in front of its product


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
