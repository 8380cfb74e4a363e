"""The kernels for Hopper: on a GPU, or else on emulated instructions.

What the emulation leaves open is in csrc/cuda/README.md.
"""

import hopper
import pytest
import torch
from attention_cases import DEVICE, Case, make_lengths, make_qkv
from hopper import CASES, ON_GPU, poison_padding

from mbt_fast import bottleneck_attention, native
from mbt_fast.cuda.bottleneck_attention import bottleneck_attention_fwd
from mbt_fast.dispatch import BackendError
from mbt_fast.testing import assert_close_to_exact

pytestmark = hopper.skip_without
DTYPES = [torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def emulate(hopper_module, monkeypatch):
    return hopper.install(hopper_module, monkeypatch)


def assert_within_tolerance(case, dtype, update=None, scale=None, poison=False):
    qkv, lengths = make_qkv(case, dtype), make_lengths(case)
    options = {"lengths": lengths, "update": update, "scale": scale, "return_lse": True}
    results = []
    for backend, cast in (("reference", dtype), ("reference", torch.float64), ("cuda", dtype)):
        if backend == "cuda" and poison:
            poison_padding(case, qkv)
        inputs = [stream.to(cast) for stream in qkv]
        outs, lses = bottleneck_attention(inputs, case.slots, backend=backend, **options)
        results.append([*outs, *lses])
    for eager, exact, actual in zip(*results, strict=True):
        assert_close_to_exact(actual, eager.to(actual.dtype), exact)


@dtypes
@pytest.mark.parametrize("update", [None, "mean"])
@pytest.mark.parametrize("name", CASES)
def test_within_tolerance(name, update, dtype):
    assert_within_tolerance(CASES[name], dtype, update)


@pytest.mark.parametrize("seed", hopper.SEEDS)
@pytest.mark.parametrize("name", ["two-heads-of-70", "padding", "absent-stream", "padding-wide"])
def test_copies_may_complete_at_any_time(emulate, name, seed):
    emulate(seed, 2)
    assert_within_tolerance(CASES[name], torch.bfloat16, "mean")


@pytest.mark.parametrize("name", ["padding", "absent-stream", "all-absent", "padding-wide"])
def test_padding_may_hold_nan(name):
    assert_within_tolerance(CASES[name], torch.bfloat16, "mean", poison=True)


@pytest.mark.parametrize("rows", [112, 113, 144, 176, 177, 208, 209, 352, 416])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_rows_around_the_borders_of_key_tiles(rows, head_dim):
    assert_within_tolerance(Case(1, (rows - 4,), 4, 1, head_dim), torch.bfloat16)


def test_streams_as_long_as_those_of_mbt():
    """Nine tiles of 176 keys, and two of 208; thirteen tiles of queries, the last one of 64."""
    assert_within_tolerance(Case(1, (1569, 401), 4, 1, 64), torch.bfloat16, "mean")


@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.5])
def test_any_scale(scale):
    assert_within_tolerance(CASES["two-heads-of-70"], torch.bfloat16, scale=scale)


@pytest.mark.parametrize("size", [10, 100])
def test_saturated_softmax_within_tolerance(size):
    case = Case(1, (260,), 4, 1, 64)
    (stream,) = make_qkv(case, torch.bfloat16)
    stream[:, :, :2] *= size
    results = [
        bottleneck_attention([stream.to(cast)], 4, backend=backend)[0]
        for backend, cast in (
            ("cuda", torch.bfloat16),
            ("reference", torch.bfloat16),
            ("reference", torch.float64),
        )
    ]
    assert_close_to_exact(*results)


def test_results_depend_neither_on_order_nor_on_multiprocessors(emulate):
    case = CASES["padding"]
    qkv, lengths = make_qkv(case, torch.bfloat16), make_lengths(case)
    results = []
    for seed, multiprocessors in ((0, 1), (1, 3), (2, 100), (3, 5)):
        emulate(seed, multiprocessors)
        outs, lses = bottleneck_attention(
            qkv, 4, lengths=lengths, update="mean", return_lse=True, backend="cuda"
        )
        results.append([*outs, *lses])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_statistics_are_the_parts_of_the_log_sum_exp():
    case = CASES["padding"]
    qkv, lengths = make_qkv(case, torch.bfloat16), make_lengths(case)
    _, lses, (*stats, slots) = bottleneck_attention_fwd(qkv, lengths, 4, True, 0.125)
    for lse, (shift, log2_sum) in zip(lses, stats, strict=True):
        exact = (shift.double() + log2_sum) * torch.tensor(2.0).double().log()
        assert_close_to_exact(lse, exact.float(), exact)
    assert slots.shape == (2, 3, 4, 1, 64)
    assert slots.isfinite().all()


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
        lambda x: torch.cat([x, x], -1)[..., :64],
        lambda x: torch.cat([x[..., :1], x], -1)[..., 1:],  # no multiple of 16 bytes
        lambda x: x[:, :1].expand(-1, 90, -1, -1, -1),
        lambda x: x.mT.contiguous().mT,
    ],
    ids=["heads-outside", "every-other-row", "unaligned", "expanded", "strided-channels"],
)
def test_strides_do_not_matter(view):
    (stream,) = make_qkv(Case(1, (86,), 4, 2, 64), torch.bfloat16)
    viewed = view(stream)
    (expected,) = bottleneck_attention([viewed.contiguous()], 4, backend="cuda")
    (actual,) = bottleneck_attention([viewed], 4, backend="cuda")
    assert torch.equal(actual, expected)


def test_negative_lengths_are_absent_and_long_ones_whole():
    """Values are checked before; the kernel itself must not read outside in any case."""
    qkv = make_qkv(Case(2, (9,), 2, 1, 64), torch.bfloat16)
    wrong = torch.tensor([-3, 99], dtype=torch.int32, device=DEVICE)
    (out,), _, _ = bottleneck_attention_fwd(qkv, [wrong], 2, False, 0.125)
    (whole,) = bottleneck_attention(qkv, 2, backend="cuda")
    assert out[0].eq(0).all()
    assert torch.equal(out[1], whole[1])


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["query", "key", "value"])
def test_infinity_and_nan_propagate_as_in_the_reference(which, value):
    (stream,) = make_qkv(Case(1, (101,), 0, 2, 64), torch.bfloat16)
    stream[0, 70, which, 1, 3] = value
    (actual,) = bottleneck_attention([stream], 0, backend="cuda")
    (expected,) = bottleneck_attention([stream], 0, backend="reference")
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(actual), kind(expected))


def test_other_head_dimensions_are_refused_by_the_table():
    with pytest.raises(BackendError, match="head dimension is 80, needs 64 or 128"):
        bottleneck_attention(make_qkv(Case(1, (9,), 2, 1, 80), torch.bfloat16), 2, backend="cuda")


def test_more_streams_than_a_kernel_takes_are_refused():
    qkv = make_qkv(Case(1, (3,) * 9, 1, 1, 64), torch.bfloat16)
    with pytest.raises(ValueError, match="qkv must have at most 8 streams, got 9"):
        bottleneck_attention(qkv, 1, backend="cuda")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 80}, "the head dimension must be 64 or 128, got 80"),
        ({"address": 8}, r"qkv\[0\] must begin at a multiple of 16 bytes"),
        ({"row": 3}, r"qkv\[0\] must have strides of a multiple of 16 bytes"),
        ({"dtype": "float32"}, "dtype must be bfloat16 or float16, got 'float32'"),
    ],
)
def test_launcher_refuses_before_it_launches(hopper_module, changes, message):
    memory = torch.zeros(4096, dtype=torch.bfloat16, device=DEVICE)
    dim = changes.get("dim", 64)
    with pytest.raises(ValueError, match=message):
        hopper_module.bottleneck_attention_fwd(
            hopper_module.Call(changes.get("dtype", "bfloat16"), (1, 1, 0, dim), 1.0, 0),
            [
                hopper_module.StreamForward(
                    memory.data_ptr() + changes.get("address", 0),
                    (2 * 3 * dim, 3 * dim + changes.get("row", 0), dim, dim),
                    2, 0, memory.data_ptr(), memory.data_ptr(), memory.data_ptr(), 0,
                )
            ],
        )  # fmt: skip


@pytest.mark.skipif(ON_GPU, reason="there is a GPU")
def test_the_built_module_refuses_without_a_gpu(monkeypatch):
    """Its checks are those above; then CUDA itself speaks."""
    monkeypatch.undo()
    if native.why_no_cuda_kernels():
        pytest.skip("; ".join(native.why_no_cuda_kernels()))
    module = native.cuda_module()
    memory = torch.zeros(4096, dtype=torch.bfloat16)
    for dim, error in ((80, ValueError), (64, RuntimeError)):
        stream = module.StreamForward(
            memory.data_ptr(), (6 * dim, 3 * dim, dim, dim), 2, 0, memory.data_ptr(),
            memory.data_ptr(), memory.data_ptr(), 0,
        )  # fmt: skip
        with pytest.raises(error):
            module.bottleneck_attention_fwd(
                module.Call("bfloat16", (1, 1, 0, dim), 1.0, 0), [stream]
            )
