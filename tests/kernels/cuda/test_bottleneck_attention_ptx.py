"""The kernels for Hopper as nvcc compiles them, their PTX executed on the CPU.

What the emulated instructions and ``ptx.cuh`` might both misread shows here: the executor is
written from the PTX ISA, and runs what the compiler made of the inline PTX.
"""

import pytest
import torch
from hopper import CASES
from hopper_calls import assert_gradients_within_tolerance, assert_outputs_within_tolerance

pytestmark = pytest.mark.native

SAMPLE = ("two-heads-of-70", "absent-stream", "padding-wide")
OTHERS = [name for name in CASES if name not in SAMPLE]
names = pytest.mark.parametrize("name", CASES)
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(autouse=True)
def compiled(kernels):
    return kernels


@pytest.fixture(params=["fwd", "bwd", "bwd-deterministic"])
def assert_within_tolerance(request, monkeypatch):
    if request.param == "fwd":
        return assert_outputs_within_tolerance
    choice = request.param == "bwd-deterministic"
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: choice)
    return assert_gradients_within_tolerance


@pytest.mark.parametrize("name", CASES)
@dtypes
def test_case_within_tolerance(assert_within_tolerance, name, dtype):
    assert_within_tolerance(CASES[name], dtype, update="mean")
