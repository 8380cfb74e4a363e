"""Which tests the GPU suite runs, where, and a rehearsal of some."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu_tests
from benchmarks.gpu_suite import ROOT
from mbt_fast.ops.dispatch import INTERPRET

OP = "tests/ops/test_layer_ops.py::test_within_tolerance"


@pytest.mark.parametrize(
    ("test", "needed"),
    [
        ("tests/ops/test_random_calls.py::test_random_call[3-torch.float16-triton]", True),
        ("tests/ops/test_random_calls.py::test_random_call[4-torch.float16-triton]", False),
        (f"{OP}[add_layer_norm-tails-triton-torch.bfloat16]", True),
        (f"{OP}[add_layer_norm-tails-triton-torch.float32]", False),
        (f"{OP}[add_layer_norm-tails-triton-torch.float16]", False),
        (f"{OP}[add_layer_norm-two-streams-triton-torch.float32]", True),
        ("tests/kernels/cuda/test_x.py::test_y[torch.float16]", True),
    ],
)
def test_more_of_the_same_is_left_out(test, needed):
    assert gpu_tests.is_needed(test) is needed


def test_all_tests_of_a_case_and_dtype_are_in_one_part():
    names = [f"tests/a.py::test_{i}[triton-two-streams-torch.bfloat16]" for i in range(9)]
    assert len({gpu_tests.place(name, 14) for name in names}) == 1
    others = [f"tests/a.py::test_b[case-{chr(97 + i)}-torch.bfloat16]" for i in range(20)]
    assert len({gpu_tests.place(name, 14) for name in others}) > 5


@pytest.mark.skipif(INTERPRET, reason="TRITON_INTERPRET=1 replaces the compiler")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a true driver")
def test_a_rehearsal_compiles_and_compares_nothing(tmp_path):
    pytest.importorskip("triton", reason="triton is not installed")
    options = ["--rehearse", "--compiled", str(tmp_path / "compiled.json")]
    tests = ["tests/ops/test_residual_add.py", "-k", "triton", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu_tests", "-rs"]
    done = subprocess.run(
        [*command, *options, *tests], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert gpu_tests.NO_RESULTS in done.stdout
    compiled = json.loads((tmp_path / "compiled.json").read_text())
    assert "residual_add_fwd_kernel" in {entry["kernel"] for entry in compiled}
    assert all("[triton" in entry["test"] or not entry["test"] for entry in compiled)
