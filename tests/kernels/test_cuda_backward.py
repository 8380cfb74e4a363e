"""The backward for Hopper: on a GPU, or else on emulated instructions.

What the emulation leaves open is in csrc/cuda/README.md.
"""

from functools import partial

import hopper
import pytest
import torch
from attention_cases import DEVICE, Case, make_lengths, make_qkv, present
from hopper import CASES

from mbt_fast import bottleneck_attention
from mbt_fast.testing import assert_close_to_exact

pytestmark = hopper.skip_without
variants = pytest.mark.parametrize("deterministic", [False, True], ids=["added", "deterministic"])
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


def make_gradients(case, dtype):
    """Of outputs and log-sum-exps; the last stream's log-sum-exp is not used."""
    rows = [own + case.slots for own in case.own]
    douts = [torch.randn(case.batch, r, case.heads, case.head_dim, device=DEVICE) for r in rows]
    dlses = [torch.randn(case.batch, case.heads, r, device=DEVICE) for r in rows[:-1]]
    return [d.to(dtype) for d in douts], dlses


def unused_rows(case, stream, example):
    """Rows that take no part: padding, or all of an absent stream."""
    if case.lengths is None or case.lengths[stream] is None:
        return slice(0, 0)
    length = case.lengths[stream][example]
    return slice(length, case.own[stream] + (0 if present(case, stream, example) else case.slots))


def fill_unused(case, gradients, value):
    """Set the gradients of rows that take no part."""
    douts, dlses = ([g.clone() for g in entries] for entries in gradients)
    for example in range(case.batch):
        for stream, dout in enumerate(douts):
            dout[example, unused_rows(case, stream, example)] = value
        for stream, dlse in enumerate(dlses):
            dlse[example, :, unused_rows(case, stream, example)] = value
    return douts, dlses


def gradients_of(backend, qkv, case, gradients, **options):
    """Packed gradients of the streams."""
    inputs = [stream.detach().requires_grad_() for stream in qkv]
    outs, lses = bottleneck_attention(
        inputs, case.slots, lengths=make_lengths(case), return_lse=True, backend=backend, **options
    )
    douts, dlses = gradients
    given = [d.to(o.dtype) for d, o in zip([*douts, *dlses], [*outs, *lses], strict=False)]
    return torch.autograd.grad([*outs, *lses[: len(dlses)]], inputs, given)


def assert_gradients_within_tolerance(case, dtype, poison=False, size=1.0, **options):
    qkv, gradients = make_qkv(case, dtype), make_gradients(case, dtype)
    for stream in qkv:
        stream[:, :, :2] *= size
    clean = fill_unused(case, gradients, 0.0)
    run = partial(gradients_of, case=case, **options)
    eager = run("reference", qkv, gradients=clean)
    exact = run("reference", [stream.double() for stream in qkv], gradients=clean)
    if poison:
        hopper.poison_padding(case, qkv)
        gradients = fill_unused(case, gradients, torch.nan)
    actual = run("cuda", qkv, gradients=gradients)
    for stream, results in enumerate(zip(actual, eager, exact, strict=True)):
        for which, name in enumerate(("dq", "dk", "dv")):
            parts = (result[:, :, which] for result in results)
            assert_close_to_exact(*parts, name=f"{name} of stream {stream}")
        for example in range(case.batch):
            assert results[0][example, unused_rows(case, stream, example)].eq(0).all()


@variants
@updates
@pytest.mark.parametrize("name", CASES)
def test_gradients_within_tolerance(use, name, update, deterministic):
    use(deterministic)
    assert_gradients_within_tolerance(CASES[name], torch.bfloat16, update=update)


@variants
@pytest.mark.parametrize("name", ["two-heads-of-70", "three-streams", "small-wide"])
def test_float16_gradients_within_tolerance(use, name, deterministic):
    use(deterministic)
    assert_gradients_within_tolerance(CASES[name], torch.float16, update="mean")


@variants
@pytest.mark.parametrize("seed", hopper.SEEDS)
@pytest.mark.parametrize("name", ["absent-stream", "slots-across-two-tiles", "padding-wide"])
def test_copies_may_complete_at_any_time(emulate, use, name, seed, deterministic):
    emulate(seed, 2)
    use(deterministic)
    assert_gradients_within_tolerance(CASES[name], torch.bfloat16, update="mean")


@pytest.mark.parametrize("seed", [3, 4, 5, 6])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_groups_may_get_ahead_of_one_another(emulate, use, head_dim, seed):
    """With one buffer for dS instead of two this fails."""
    emulate(seed, 1)
    use(False)
    assert_gradients_within_tolerance(Case(1, (296,), 4, 1, head_dim), torch.bfloat16)


@variants
@pytest.mark.parametrize("name", ["padding", "absent-stream", "all-absent", "padding-wide"])
def test_padding_may_hold_nan(use, name, deterministic):
    """In the streams, and in the gradients that come in."""
    use(deterministic)
    assert_gradients_within_tolerance(CASES[name], torch.bfloat16, poison=True, update="mean")


@variants
@pytest.mark.parametrize("rows", [63, 64, 65, 127, 129, 192, 193, 257])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_rows_around_the_borders_of_tiles(use, rows, head_dim, deterministic):
    use(deterministic)
    assert_gradients_within_tolerance(Case(1, (rows - 4,), 4, 1, head_dim), torch.bfloat16)


@variants
def test_streams_as_long_as_the_audio_of_mbt(use, deterministic):
    """Four tiles of keys, the last one of 21."""
    use(deterministic)
    case = Case(1, (401, 90), 4, 1, 64)
    assert_gradients_within_tolerance(case, torch.bfloat16, update="mean")


@variants
@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.5])
def test_any_scale(use, scale, deterministic):
    use(deterministic)
    assert_gradients_within_tolerance(CASES["two-heads-of-70"], torch.bfloat16, scale=scale)


@variants
@pytest.mark.parametrize("size", [3, 10])
def test_saturated_softmax_within_tolerance(use, size, deterministic):
    use(deterministic)
    assert_gradients_within_tolerance(Case(1, (130,), 4, 1, 64), torch.bfloat16, size=size)


@variants
def test_a_single_key_leaves_no_gradient_to_scores(use, deterministic):
    """Softmax is constant there: exactly 0, not the rounding of dp - delta."""
    use(deterministic)
    case = CASES["one-row"]
    qkv = make_qkv(case, torch.bfloat16)
    douts, _ = make_gradients(case, torch.bfloat16)
    (dqkv,) = gradients_of("cuda", qkv, case, (douts, []))
    assert dqkv[:, :, :2].eq(0).all()
    assert torch.equal(dqkv[:, :, 2], douts[0])


@pytest.mark.parametrize("name", ["padding", "padding-wide"])
def test_deterministic_results_repeat_bit_by_bit(emulate, use, name):
    use(True)
    case = CASES[name]
    qkv, gradients = make_qkv(case, torch.bfloat16), make_gradients(case, torch.bfloat16)
    results = []
    for seed, multiprocessors in ((0, 1), (1, 3), (2, 100), (3, 5)):
        emulate(seed, multiprocessors)
        results.append(gradients_of("cuda", qkv, case, gradients, update="mean"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("deterministic", [False, True])
def test_torch_chooses_the_variant(hopper_module, monkeypatch, deterministic):
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 80}, "the head dimension must be 64 or 128, got 80"),
        ({"address": 8}, r"douts\[0\] must begin at a multiple of 16 bytes"),
        ({"row": 3}, r"douts\[0\] must have strides of a multiple of 16 bytes"),
    ],
)
def test_launcher_refuses_before_it_launches(hopper_module, changes, message):
    memory = torch.zeros(4096, dtype=torch.bfloat16, device=DEVICE)
    address, dim = memory.data_ptr(), changes.get("dim", 64)
    stream = hopper_module.StreamBackward(
        address, (6 * dim, 3 * dim, dim, dim), 2, 0, address, 0, address,
        address + changes.get("address", 0), (2 * dim, dim + changes.get("row", 0), dim), 0,
        address, address,
    )  # fmt: skip
    call = hopper_module.Call("bfloat16", (1, 1, 0, dim), 1.0, 0)
    with pytest.raises(ValueError, match=message):
        hopper_module.bottleneck_attention_bwd(call, [stream], 0, False)
