"""What Triton made of the kernels, computed on the executor of PTX: no GPU, no interpreter.

Each launch runs twice, its warps in step and one after the other, and has the same bits. A sample
of the cases runs by default, and all of them by ``-m exhaustive``.
"""

import ctypes

import attention_cases
import pytest
import torch
from attention_cases import Case, compare, make_lengths, make_qkv
from layer_cases import GELU, NORM, RESIDUAL, assert_within_tolerance
from triton_device import triton_device

from mbt_fast.testing.inputs import random_call, run_call
from mbt_fast.testing.numerics import assert_close_to_exact

pytestmark = pytest.mark.slow  # the compiler

ARCHS = (80, 90)
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
ATTENTION = attention_cases.CASES | {  # walks of several whole tiles, and of both widths
    "long": Case(1, (300, 130), 4, 1, 64),
    "long-wide-head": Case(1, (200, 70), 4, 1, 128, ((150,), None)),
}
LAYER = {
    f"{op.name}-{name}": (op, case)
    for op in (NORM, RESIDUAL, GELU)
    for name, case in op.cases().items()
}
SAMPLE = {
    *("80-bf16-long-mean", "80-f16-padding-mean", "80-f32-two-streams-mean"),
    *("90-bf16-long-mean", "90-f16-long-wide-head", "90-bf16-absent-stream-mean"),
    *("80-bf16-add_layer_norm-dropped-and-absent", "90-f16-add_layer_norm-absent-of-three"),
    *("90-bf16-residual_add-dropped-and-absent", "80-f32-residual_add-two-streams"),
    *("80-bf16-bias_gelu-two-streams", "90-f32-bias_gelu-tails", "80-bf16-random-0"),
}


def every(names):
    """Every architecture, dtype and name; only those of the sample run by default."""
    return [
        pytest.param(arch, dtype, name, marks=() if full in SAMPLE else pytest.mark.exhaustive)
        for arch in ARCHS
        for dtype in DTYPES
        for name in names
        for full in (f"{arch}-{dtype}-{name}",)
    ]


def in_two_orders(launch):
    """Run a launch with warps in step, and again one after the other: the bits are the same."""
    launch.run()
    first = [ctypes.string_at(*window) for window in launch.memory().spans]
    launch.run(seed=0)
    assert first == [ctypes.string_at(*window) for window in launch.memory().spans], launch.name


@pytest.mark.parametrize(
    ("arch", "dtype", "name"), every([f"{n}{u}" for n in ATTENTION for u in ("", "-mean")])
)
def test_attention_forward_and_backward(arch, dtype, name, monkeypatch):
    case = ATTENTION[name.removesuffix("-mean")]
    update = "mean" if name.endswith("-mean") else None
    with triton_device(monkeypatch, arch, in_two_orders) as launches:
        qkv = make_qkv(case, DTYPES[dtype])
        compare("triton", qkv, case.slots, make_lengths(case), update)
    assert launches or not case.batch


@pytest.mark.parametrize(("arch", "dtype", "name"), every(LAYER))
def test_layer_ops_forward_and_backward(arch, dtype, name, monkeypatch):
    op, case = LAYER[name]
    with triton_device(monkeypatch, arch, in_two_orders) as launches:
        assert_within_tolerance(op, case, op.make(case, DTYPES[dtype]), "triton")
    assert launches or not case.batch


@pytest.mark.parametrize(("arch", "dtype", "name"), every([f"random-{s}" for s in range(8)]))
def test_random_calls_with_log_sum_exps(arch, dtype, name, monkeypatch):
    """Any layout, lengths, scale and head dimension, and gradients of the log-sum-exps."""
    call = random_call(int(name.partition("-")[2]), torch.device("cpu"))
    rounded = call._replace(qkv=[stream.to(DTYPES[dtype]) for stream in call.qkv])
    with triton_device(monkeypatch, arch, in_two_orders):
        actual = run_call(rounded, "triton", DTYPES[dtype])
    eager = run_call(rounded, "reference", DTYPES[dtype])
    exact = run_call(rounded, "reference", torch.float64)
    for kind, tensors in actual.items():
        for m, triple in enumerate(zip(tensors, eager[kind], exact[kind], strict=True)):
            assert_close_to_exact(*triple, name=f"{kind} of stream {m}")
