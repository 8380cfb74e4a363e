"""Which tests the GPU suite runs, where, and a rehearsal of some."""

import json
import subprocess
import sys
from itertools import chain

import pytest
import torch

from benchmarks import gpu_tests
from benchmarks.gpu_suite import ROOT
from mbt_fast.ops.dispatch import INTERPRET

OP = "tests/ops/test_layer_ops.py::test_within_tolerance"


TESTS = {  # and whether they are needed
    "tests/ops/test_random_calls.py::test_random_call[1-torch.float16-triton]": True,
    "tests/ops/test_random_calls.py::test_random_call[1-torch.float32-triton]": False,
    "tests/ops/test_random_calls.py::test_random_call[2-torch.float16-triton]": False,
    f"{OP}[add_layer_norm-random-1-triton-torch.bfloat16]": True,
    f"{OP}[add_layer_norm-random-2-triton-torch.bfloat16]": False,
    f"{OP}[add_layer_norm-tails-triton-torch.float32]": False,
    f"{OP}[add_layer_norm-tails-triton-torch.bfloat16]": True,
    f"{OP}[add_layer_norm-tails-triton-torch.float16]": False,
    f"{OP}[add_layer_norm-two-streams-triton-torch.float32]": True,
    f"{OP}[add_layer_norm-two-streams-triton-torch.bfloat16]": True,
    "tests/ops/test_transforms.py::test_opcheck[triton]": False,
    "tests/ops/test_bias_gelu.py::test_x[triton]": True,
    "tests/kernels/cuda/test_x.py::test_y[torch.float16]": True,
    "tests/kernels/cuda/test_x.py::test_y[torch.bfloat16]": True,
}


def test_more_of_the_same_is_left_out():
    assert gpu_tests.needed(list(TESTS)) == {test for test, needed in TESTS.items() if needed}


@pytest.mark.parametrize("count", [0, 1, 13, 14, 100])
def test_parts_are_all_tests_once_and_about_equal(count):
    tests = list(range(count))
    parts = [gpu_tests.part(tests, i, 14) for i in range(14)]
    assert [*chain.from_iterable(parts)] == tests
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


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
    assert all("triton" in entry["test"] or not entry["test"] for entry in compiled)
    assert all(entry["seconds"] >= 0 and entry["key"] for entry in compiled)
