"""Every shipped Triton configuration compiles for every architecture, without a GPU.

What each needs is recorded in ``benchmarks/results/aot/triton.json``, so that a kernel that grows
shows in a diff. ``python -m benchmarks.aot triton predictions`` writes the record anew.
"""

import json

import pytest

from mbt_fast.ops.dispatch import INTERPRET

triton = pytest.importorskip("triton", reason="triton is not installed")
if INTERPRET:
    pytest.skip("TRITON_INTERPRET=1 replaces the compiler", allow_module_level=True)

from benchmarks.aot import calibration, predictions  # noqa: E402
from benchmarks.aot.cases import ATTENTION, cases  # noqa: E402
from benchmarks.aot.model import APART, BESIDE  # noqa: E402
from benchmarks.aot.record import PATHS, compiled_entry, triton_entry  # noqa: E402
from benchmarks.aot.turns import SHARED_MEMORY  # noqa: E402

RECORD = json.loads(PATHS["triton"].read_text())
CASES = {str(case): case for case in cases()}
MESSAGE = "write the record anew with python -m benchmarks.aot, and look at the difference"
needs_recorded_version = pytest.mark.skipif(
    triton.__version__ != RECORD["triton"],
    reason=f"the record is of Triton {RECORD['triton']}, this is {triton.__version__}",
)


def most_registers(case):
    """Registers that a thread may have.

    A kernel that has fewer and spills a few bytes has not met this limit: the assembler of Triton
    3.9 gives up two registers where this lets one more block run. The record of the pinned version
    has no spill at all.
    """
    return min(255, 65536 // (32 * case.tiles.num_warps))


@pytest.mark.aot
@pytest.mark.parametrize("name", CASES)
def test_compiles_without_spills_and_as_recorded(name):
    case = CASES[name]
    found = triton_entry(case)
    assert found["spilled_bytes"] == 0 or found["registers"] < most_registers(case)
    assert found["shared_bytes"] <= SHARED_MEMORY[case.arch]
    if triton.__version__ != RECORD["triton"]:
        pytest.skip(f"the record is of Triton {RECORD['triton']}, this is {triton.__version__}")
    assert found == RECORD["kernels"][name], MESSAGE


def test_record_has_every_kernel_and_no_other():
    assert set(RECORD["kernels"]) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_no_recorded_kernel_spills_or_exceeds_shared_memory(name):
    entry = RECORD["kernels"][name]
    assert entry["spilled_bytes"] == 0
    assert entry["shared_bytes"] <= SHARED_MEMORY[CASES[name].arch]
    assert entry["blocks"] >= 1


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.arch == 90])
def test_products_run_on_tensor_cores_and_none_waits_alone(name):
    """A wait behind every product would mean that ptxas serialised them (C7510 to C7519)."""
    case, entry = CASES[name], RECORD["kernels"][name]
    multiplies = case.kernel in ATTENTION and case.kernel != "delta" and case.element != "fp32"
    assert (entry["products"] > 0) == multiplies
    assert entry["waits"] * 2 <= entry["products"]


@pytest.mark.parametrize(
    ("kernel", "most"), [("fwd", 1.08), ("fwd_mean", 1.08), ("dkdv", 0.7), ("dq", 0.75)]
)
def test_schedulers_do_not_limit_the_walks_on_sm_90(kernel, most):
    """Issue cycles per cycle of the tensor cores; they were 1.38, 1.38, 3.44 and 1.14."""
    turn = RECORD["kernels"][f"{kernel}-bf16-d64-sm_90"]["turns"][0]
    assert turn["issue"] <= most * turn["tensor"]


@pytest.mark.parametrize("kernel", ["fwd", "fwd_mean"])
def test_two_blocks_of_the_forward_fit_a_multiprocessor_of_sm_90(kernel):
    assert RECORD["kernels"][f"{kernel}-bf16-d64-sm_90"]["blocks"] == 2


def test_the_model_is_fitted_to_what_is_published():
    turn = predictions.Turn(**RECORD["calibration"]["turns"][0])
    walks = {
        APART: (calibration.TUTORIAL, calibration.tutorial(turn)),
        BESIDE: (calibration.FLASH_3, calibration.flash_3()),
    }
    for fit, (published, walk) in walks.items():
        assert calibration.fit(published, walk) == pytest.approx(fit, abs=2e-3)


@pytest.mark.aot
@needs_recorded_version
def test_the_calibration_compiles_as_recorded():
    tiles = calibration.TILES
    compiled = calibration.compile_kernel()
    found = compiled_entry(compiled, tiles.num_warps, calibration.ARCH)
    assert found == RECORD["calibration"], MESSAGE


def test_predictions_are_of_the_record():
    cuda = json.loads(PATHS["cuda"].read_text())
    assert predictions.predictions(RECORD, cuda) == json.loads(predictions.PATH.read_text()), (
        MESSAGE
    )
