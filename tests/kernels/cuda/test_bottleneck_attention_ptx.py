"""The kernels for Hopper as nvcc compiles them, their PTX executed on the CPU.

What ``hopper/ptx.cuh`` and the emulated instructions misread alike shows here: the executor is
written from the PTX ISA, and runs what the compiler made of the inline PTX. A sample of the cases
runs by default, and all of them by ``-m exhaustive``.
"""

from itertools import product

import pytest
import torch
from attention_cases import Case, make_lengths, make_qkv
from hopper import CASES
from hopper_calls import (
    assert_gradients_within_tolerance,
    assert_outputs_within_tolerance,
    assert_propagates,
    gradients_of,
    make_gradients,
)

from mbt_fast import bottleneck_attention

pytestmark = pytest.mark.native

VARIANTS = ("fwd", "bwd", "bwd-deterministic")
DTYPES = (torch.bfloat16, torch.float16)
LONG = {"padding", "padding-wide"}  # in seconds
IN_FLOAT16 = {"two-heads-of-70", "small-wide"}


def marks(variant, name, dtype):
    """None for a case that runs by default."""
    if dtype == torch.float16:
        is_sample = name in IN_FLOAT16
    else:
        is_sample = (
            name not in LONG or variant == "fwd" or (variant, name) == ("bwd", "padding-wide")
        )
    return () if is_sample else pytest.mark.exhaustive


@pytest.fixture(autouse=True)
def emulate(kernels):
    return kernels.emulate


@pytest.fixture
def use(monkeypatch):
    """Chooses the variant of the backward."""

    def use(variant):
        choice = variant == "bwd-deterministic"
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: choice)

    return use


def assert_within_tolerance(variant, *call, **options):
    forward = variant == "fwd"
    check = assert_outputs_within_tolerance if forward else assert_gradients_within_tolerance
    check(*call, **options)


@pytest.mark.parametrize(
    ("variant", "name", "dtype"),
    [pytest.param(*case, marks=marks(*case)) for case in product(VARIANTS, CASES, DTYPES)],
)
def test_case_within_tolerance(use, variant, name, dtype):
    """Padding holds NaN."""
    use(variant)
    case = CASES[name]
    assert_within_tolerance(variant, case, dtype, poison=bool(case.lengths), update="mean")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", [-0.3, pytest.param(0.0, marks=pytest.mark.exhaustive)])
def test_any_scale_within_tolerance(use, variant, scale):
    use(variant)
    assert_within_tolerance(variant, CASES["two-heads-of-70"], torch.bfloat16, scale=scale)


@pytest.mark.parametrize("seed", [0, 2, 3])
@pytest.mark.parametrize("variant", ["fwd", "bwd"])
def test_warps_run_in_any_order(emulate, use, variant, seed):
    emulate(seed, 1)
    use(variant)
    assert_within_tolerance(variant, CASES["slots-across-two-tiles"], torch.bfloat16)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["padding", "padding-wide"])
def test_results_depend_neither_on_order_nor_on_multiprocessors(emulate, use, name):
    use("bwd-deterministic")
    case = CASES[name]
    qkv, gradients = make_qkv(case, torch.bfloat16), make_gradients(case, torch.bfloat16)
    results = []
    for seed, multiprocessors in ((0, 1), (1, 3), (2, 100)):
        emulate(seed, multiprocessors)
        outs, lses = bottleneck_attention(
            qkv, 4, lengths=make_lengths(case), update="mean", return_lse=True, backend="cuda"
        )
        dqkv = gradients_of("cuda", qkv, case, gradients, update="mean")
        results.append([*outs, *lses, *dqkv])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.exhaustive
@pytest.mark.parametrize("rows", [112, 113, 144, 176, 177, 208, 209, 352, 416])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_forward_of_rows_around_the_borders_of_key_tiles(rows, head_dim):
    assert_outputs_within_tolerance(Case(1, (rows - 4,), 4, 1, head_dim), torch.bfloat16)


@pytest.mark.exhaustive
@pytest.mark.parametrize("variant", VARIANTS[1:])
@pytest.mark.parametrize("rows", [63, 64, 65, 127, 129, 192, 193, 257])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_backward_of_rows_around_the_borders_of_tiles(use, rows, head_dim, variant):
    use(variant)
    assert_gradients_within_tolerance(Case(1, (rows - 4,), 4, 1, head_dim), torch.bfloat16)


@pytest.mark.exhaustive
def test_forward_of_streams_as_long_as_those_of_mbt():
    case = Case(1, (1569, 401), 4, 1, 64)
    assert_outputs_within_tolerance(case, torch.bfloat16, update="mean")


@pytest.mark.exhaustive
@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_backward_of_streams_as_long_as_the_audio_of_mbt(use, variant):
    use(variant)
    assert_gradients_within_tolerance(Case(1, (401, 90), 4, 1, 64), torch.bfloat16, update="mean")


@pytest.mark.exhaustive
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [3, 10])
def test_saturated_softmax_within_tolerance(use, variant, size):
    use(variant)
    assert_within_tolerance(variant, Case(1, (130,), 4, 1, 64), torch.bfloat16, size=size)


@pytest.mark.exhaustive
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["query", "key", "value"])
def test_infinity_and_nan_propagate_as_in_the_reference(which, value):
    assert_propagates(which, value)
