"""The kernels for Hopper, forward and backward: on a GPU, or else on emulated instructions.

What the emulation leaves open is in csrc/cuda/README.md.
"""

from functools import partial

import hopper
import pytest
import torch
from attention_cases import DEVICE, Case, launch, make_lengths, make_qkv
from hopper import CASES, ON_GPU
from hopper_calls import (
    assert_gradients_within_tolerance,
    assert_outputs_within_tolerance,
    assert_propagates,
    gradients_of,
    make_gradients,
)

from mbt_fast import bottleneck_attention
from mbt_fast.dispatch import BackendError
from mbt_fast.ops import cuda, extension
from mbt_fast.testing import assert_close_to_exact

pytestmark = [pytest.mark.native, hopper.skip_without]
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
updates = pytest.mark.parametrize("update", [None, "mean"])


@pytest.fixture(autouse=True)
def emulate(hopper_module, monkeypatch):
    return hopper.install(hopper_module, monkeypatch)


@pytest.fixture
def use(monkeypatch):
    """Chooses the variant, as ``torch.use_deterministic_algorithms`` would."""
    return lambda deterministic: monkeypatch.setattr(
        torch, "are_deterministic_algorithms_enabled", lambda: deterministic
    )


@pytest.fixture(params=["fwd", "bwd", "bwd-deterministic"])
def assert_within_tolerance(request, use):
    """Checks a call by the tolerance rule: of the forward, or of one variant of the backward."""
    if request.param == "fwd":
        return assert_outputs_within_tolerance
    use(request.param == "bwd-deterministic")
    return assert_gradients_within_tolerance


@updates
@pytest.mark.parametrize("name", CASES)
def test_case_within_tolerance(assert_within_tolerance, name, update):
    assert_within_tolerance(CASES[name], torch.bfloat16, update=update)


@updates
@pytest.mark.parametrize("name", CASES)
def test_forward_in_float16_within_tolerance(name, update):
    assert_outputs_within_tolerance(CASES[name], torch.float16, update=update)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", ["two-heads-of-70", "three-streams", "small-wide"])
def test_backward_in_float16_within_tolerance(use, name, deterministic):
    use(deterministic)
    assert_gradients_within_tolerance(CASES[name], torch.float16, update="mean")


@pytest.mark.parametrize("seed", hopper.SEEDS)
@pytest.mark.parametrize(
    "name",
    ["two-heads-of-70", "padding", "absent-stream", "slots-across-two-tiles", "padding-wide"],
)
def test_copies_complete_at_any_time(emulate, assert_within_tolerance, name, seed):
    emulate(seed, 2)
    assert_within_tolerance(CASES[name], torch.bfloat16, update="mean")


@pytest.mark.parametrize("seed", [3, 4, 5, 6])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_backward_groups_get_ahead_of_one_another(emulate, use, head_dim, seed):
    """With one buffer for dS instead of two this fails."""
    emulate(seed, 1)
    use(False)
    assert_gradients_within_tolerance(Case(1, (296,), 4, 1, head_dim), torch.bfloat16)


@pytest.mark.parametrize("name", ["padding", "absent-stream", "all-absent", "padding-wide"])
def test_padding_holds_nan(assert_within_tolerance, name):
    """In the streams, and in the gradients that come in."""
    assert_within_tolerance(CASES[name], torch.bfloat16, poison=True, update="mean")


@pytest.mark.parametrize("key", [0, 33, 73, 101])
def test_nan_in_a_key_reaches_every_row(key):
    """Whichever way its exponential is computed, and whether or not the tile is masked."""
    (stream,) = make_qkv(Case(1, (98,), 4, 1, 64), torch.bfloat16)
    stream[:, key, 1] = torch.nan
    (out,) = bottleneck_attention([stream], 4, backend="cuda")
    assert out.isnan().all()


@pytest.mark.parametrize("rows", [112, 113, 144, 176, 177, 208, 209, 352, 416])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_forward_of_rows_around_the_borders_of_key_tiles(rows, head_dim):
    assert_outputs_within_tolerance(Case(1, (rows - 4,), 4, 1, head_dim), torch.bfloat16)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("rows", [63, 64, 65, 127, 129, 192, 193, 257])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_backward_of_rows_around_the_borders_of_tiles(use, rows, head_dim, deterministic):
    use(deterministic)
    assert_gradients_within_tolerance(Case(1, (rows - 4,), 4, 1, head_dim), torch.bfloat16)


def test_forward_of_streams_as_long_as_those_of_mbt():
    """Nine tiles of 176 keys, and two of 208; thirteen tiles of queries, the last one of 64."""
    case = Case(1, (1569, 401), 4, 1, 64)
    assert_outputs_within_tolerance(case, torch.bfloat16, update="mean")


@pytest.mark.parametrize("deterministic", [False, True])
def test_backward_of_streams_as_long_as_the_audio_of_mbt(use, deterministic):
    """Four tiles of keys, the last one of 21."""
    use(deterministic)
    case = Case(1, (401, 90), 4, 1, 64)
    assert_gradients_within_tolerance(case, torch.bfloat16, update="mean")


@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.5])
def test_any_scale_within_tolerance(assert_within_tolerance, scale):
    assert_within_tolerance(CASES["two-heads-of-70"], torch.bfloat16, scale=scale)


@pytest.mark.parametrize("size", [10, 100])
def test_forward_of_saturated_softmax_within_tolerance(size):
    assert_outputs_within_tolerance(Case(1, (260,), 4, 1, 64), torch.bfloat16, size=size)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("size", [3, 10])
def test_backward_of_saturated_softmax_within_tolerance(use, size, deterministic):
    use(deterministic)
    assert_gradients_within_tolerance(Case(1, (130,), 4, 1, 64), torch.bfloat16, size=size)


@pytest.mark.parametrize("deterministic", [False, True])
def test_backward_of_a_single_key_leaves_no_gradient_to_scores(use, deterministic):
    """Softmax is constant there: exactly 0, not the rounding of dp - delta."""
    use(deterministic)
    case = CASES["one-row"]
    qkv = make_qkv(case, torch.bfloat16)
    douts, _ = make_gradients(case, torch.bfloat16)
    (dqkv,) = gradients_of("cuda", qkv, case, (douts, []))
    assert dqkv[:, :, :2].eq(0).all()
    assert torch.equal(dqkv[:, :, 2], douts[0])


@pytest.mark.parametrize("name", ["padding", "padding-wide"])
def test_results_depend_neither_on_order_nor_on_multiprocessors(emulate, use, name):
    """The forward's never do, and the deterministic backward's do not."""
    use(True)
    case = CASES[name]
    qkv, gradients = make_qkv(case, torch.bfloat16), make_gradients(case, torch.bfloat16)
    results = []
    for seed, multiprocessors in ((0, 1), (1, 3), (2, 100), (3, 5)):
        emulate(seed, multiprocessors)
        outs, lses = bottleneck_attention(
            qkv, 4, lengths=make_lengths(case), update="mean", return_lse=True, backend="cuda"
        )
        dqkv = gradients_of("cuda", qkv, case, gradients, update="mean")
        results.append([*outs, *lses, *dqkv])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("deterministic", [False, True])
def test_backward_variant_is_chosen_by_torch(hopper_module, monkeypatch, deterministic):
    case, launch, asked = CASES["one-row"], hopper_module.bottleneck_attention_bwd, []

    def note(call, streams, dslots, is_deterministic):
        asked.append(is_deterministic)
        launch(call, streams, dslots, is_deterministic)

    monkeypatch.setattr(hopper_module, "bottleneck_attention_bwd", note)
    qkv, gradients = make_qkv(case, torch.bfloat16), make_gradients(case, torch.bfloat16)
    torch.use_deterministic_algorithms(deterministic)
    try:
        gradients_of("cuda", qkv, case, gradients)
    finally:
        torch.use_deterministic_algorithms(False)
    assert asked == [deterministic]


def test_statistics_are_the_parts_of_the_log_sum_exp():
    case = CASES["padding"]
    qkv, lengths = make_qkv(case, torch.bfloat16), make_lengths(case)
    _, lses, stats, (slots,) = launch(cuda.bottleneck_attention_fwd, qkv, lengths, 4, True)
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
def test_strides_of_streams_do_not_matter(view):
    (stream,) = make_qkv(Case(1, (86,), 4, 2, 64), torch.bfloat16)
    viewed = view(stream)
    (expected,) = bottleneck_attention([viewed.contiguous()], 4, backend="cuda")
    (actual,) = bottleneck_attention([viewed], 4, backend="cuda")
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: torch.cat([x[..., :1], x], -1)[..., 1:],  # no multiple of 16 bytes
        lambda x: x[:, :1].expand(-1, 90, -1, -1),
        lambda x: x.mT.contiguous().mT,
    ],
    ids=["heads-outside", "unaligned", "expanded", "strided-channels"],
)
def test_strides_of_gradients_do_not_matter(use, view):
    use(True)  # so that results may be compared bit by bit on a GPU too
    case = Case(1, (86,), 4, 2, 64)
    qkv, (douts, _) = make_qkv(case, torch.bfloat16), make_gradients(case, torch.bfloat16)
    viewed = view(douts[0])
    run = partial(gradients_of, "cuda", qkv, case)
    assert torch.equal(run(([viewed], []))[0], run(([viewed.contiguous()], []))[0])


def test_negative_lengths_are_absent_and_long_ones_whole():
    """Values are checked before; the kernel itself must not read outside in any case."""
    qkv = make_qkv(Case(2, (9,), 2, 1, 64), torch.bfloat16)
    wrong = torch.tensor([-3, 99], dtype=torch.int32, device=DEVICE)
    (out,), *_ = launch(cuda.bottleneck_attention_fwd, qkv, [wrong], 2, False)
    (whole,) = bottleneck_attention(qkv, 2, backend="cuda")
    assert out[0].eq(0).all()
    assert torch.equal(out[1], whole[1])


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["query", "key", "value"])
def test_infinity_and_nan_propagate_as_in_the_reference(which, value):
    assert_propagates(which, value)


def test_dispatch_refuses_other_head_dimensions():
    with pytest.raises(BackendError, match="head dimension is 80, needs 64 or 128"):
        bottleneck_attention(make_qkv(Case(1, (9,), 2, 1, 80), torch.bfloat16), 2, backend="cuda")


def test_launcher_refuses_more_streams_than_a_kernel_takes():
    qkv = make_qkv(Case(1, (3,) * 9, 1, 1, 64), torch.bfloat16)
    with pytest.raises(ValueError, match="qkv must have at most 8 streams, got 9"):
        bottleneck_attention(qkv, 1, backend="cuda")


def launch_forward(module, memory, dtype="bfloat16", dim=64, address=0, row=0):
    """Two rows of one head at an address; ``address`` and ``row`` are what goes wrong."""
    at = memory.data_ptr()
    strides = (6 * dim, 3 * dim + row, dim, dim)
    stream = module.StreamForward(at + address, strides, 2, 0, at, at, at, 0)
    module.bottleneck_attention_fwd(module.Call(dtype, (1, 1, 0, dim), 1.0, 0), [stream])


def launch_backward(module, memory, dtype="bfloat16", dim=64, address=0, row=0):
    at = memory.data_ptr()
    stream = module.StreamBackward(
        at, (6 * dim, 3 * dim, dim, dim), 2, 0, at, 0, at, at + address,
        (2 * dim, dim + row, dim), 0, at, at,
    )  # fmt: skip
    call = module.Call(dtype, (1, 1, 0, dim), 1.0, 0)
    module.bottleneck_attention_bwd(call, [stream], 0, False)


@pytest.mark.parametrize(
    ("launch", "name"), [(launch_forward, "qkv"), (launch_backward, "douts")], ids=["fwd", "bwd"]
)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dim": 80}, "the head dimension must be 64 or 128, got 80"),
        ({"address": 8}, r"{}\[0\] must begin at a multiple of 16 bytes"),
        ({"row": 3}, r"{}\[0\] must have strides of a multiple of 16 bytes"),
        ({"dtype": "float32"}, "dtype must be bfloat16 or float16, got 'float32'"),
    ],
    ids=["dim", "address", "stride", "dtype"],
)
def test_extension_refuses_before_it_launches(hopper_module, launch, name, wrong, message):
    memory = torch.zeros(4096, dtype=torch.bfloat16, device=DEVICE)
    with pytest.raises(ValueError, match=message.format(name)):
        launch(hopper_module, memory, **wrong)


@pytest.mark.skipif(ON_GPU, reason="there is a GPU")
def test_built_extension_refuses_without_a_gpu(monkeypatch):
    """Its own checks come first; then CUDA says that there is no device."""
    monkeypatch.undo()
    if extension.why_no_cuda_kernels():
        pytest.skip("; ".join(extension.why_no_cuda_kernels()))
    memory = torch.zeros(4096, dtype=torch.bfloat16)
    for dim, error in ((80, ValueError), (64, RuntimeError)):
        with pytest.raises(error):
            launch_forward(extension.cuda_module(), memory, dim=dim)
