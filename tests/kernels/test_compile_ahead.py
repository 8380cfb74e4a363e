"""Every shipped Triton configuration compiles for every architecture, without a GPU."""

import json

import pytest

from mbt_fast.ops.dispatch import INTERPRET

triton = pytest.importorskip("triton", reason="triton is not installed")
if INTERPRET:
    pytest.skip("TRITON_INTERPRET=1 replaces the compiler", allow_module_level=True)

from benchmarks import compile_ahead  # noqa: E402

CASES = {str(case): case for case in compile_ahead.cases()}
RECORD = json.loads(compile_ahead.RECORD.read_text())


@pytest.mark.aot
@pytest.mark.parametrize("name", CASES)
def test_compiles_without_spills_and_as_recorded(name):
    case = CASES[name]
    found = compile_ahead.compile_case(case)
    assert found.spilled_bytes == 0
    assert found.shared_bytes <= compile_ahead.SHARED_MEMORY[case.arch]
    products = case.kernel in compile_ahead.ATTENTION and case.kernel != "delta"
    on_tensor_cores = products and case.element != "fp32"
    assert (found.wgmma > 0) == (case.arch == 90 and on_tensor_cores)
    if triton.__version__ != RECORD["triton"]:
        pytest.skip(f"the record is of Triton {RECORD['triton']}, this is {triton.__version__}")
    message = "run python -m benchmarks.compile_ahead --record, and look at the difference"
    assert found._asdict() == RECORD["kernels"][name], message


@pytest.mark.aot
def test_record_has_no_other_kernels():
    assert set(RECORD["kernels"]) == set(CASES)
