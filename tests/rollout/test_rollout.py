"""Attention rollout against the product of whole matrices, and what holds for any rollout."""

import pytest
import torch
from backends import backends_of
from materialised import Materialised, expected_for_class, expected_rollout
from model_cases import FUSIONS, changes, int32, lengths, random_inputs, tiny
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mbt_fast import create_model, rollout
from mbt_fast.rollout import attention
from mbt_fast.testing import assert_close_to_exact

EXACT = {"rtol": 0, "atol": 1e-10}  # of float64 sums of a few hundred terms below one
SIZES = {
    "rgb": ((2, 32, 32), (1, 16, 16)),
    "spectrogram": ((64, 32), (16, 16)),
    "depth": ((1, 48, 16), (1, 16, 16)),
}
MODELS = FUSIONS | {
    "in order": {"update_order": ("spectrogram", "rgb")},
    "in order, early, shared": {
        "update_order": ("rgb", "spectrogram"),
        "fusion_layer": 0,
        "share_encoder": True,
    },
    "unimodal at test": {"test_with_bottlenecks": False},
    "last layer": {"fusion_layer": 3},
    "early, shared": {"fusion_layer": 0, "share_encoder": True},
}
models = pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())


def model_of(*modalities, **options):
    sizes = {
        name: {m: SIZES[m][i] for m in modalities}
        for i, name in enumerate(("input_size", "patch_size"))
    }
    return tiny(modalities=modalities, **sizes, **options)


def inputs_of(model, batch=2):
    shapes = {m: model.embedding(m).input_shape for m in model.config.modalities}
    return {m: torch.randn(batch, *shape, dtype=torch.float64) for m, shape in shapes.items()}


def shown(row, like):
    """Masses of the valid own tokens as the share of CLS and a map."""
    whole = like.new_zeros(1 + like.numel())
    whole[: len(row)] = row
    return whole[0], whole[1:].view_as(like)


def assert_as_expected(result, expected):
    """Maps of every source, and the means over the present ones; zeros where nothing is present."""
    for index, sources in enumerate(expected):
        nothing = {m: (x.new_zeros(()), torch.zeros_like(x[index])) for m, x in result.items()}
        each = {
            source: nothing | {m: shown(row, result[m][index]) for m, row in own.items()}
            for source, (own, _) in sources.items()
        }
        for source, maps in result.by_source.items():
            for m, x in maps.items():
                torch.testing.assert_close(x[index], each.get(source, nothing)[m][1], **EXACT)
        present = list(each.values()) or [nothing]
        for m, x in result.items():
            cls, maps = (torch.stack(part) for part in zip(*(of[m] for of in present), strict=True))
            torch.testing.assert_close(x[index], maps.mean(0), **EXACT)
            torch.testing.assert_close(result.cls[m][index], cls.mean(), **EXACT)
        tokens = result.bottlenecks[index]
        if sources and len(tokens):
            learned = torch.stack([learned for _, learned in sources.values()])
            torch.testing.assert_close(tokens, learned.mean(0), **EXACT)


def total(result):
    return sum(result.shares.values()) + result.bottlenecks.sum(dim=1)


@models
@lengths
def test_rollout_is_the_product_of_all_layers(options, lengths):
    model, inputs = tiny(**options), random_inputs()
    assert_as_expected(rollout(model, inputs, lengths), expected_rollout(model, inputs, lengths))


@pytest.mark.parametrize(
    "modalities", [("rgb",), ("spectrogram",), ("rgb", "spectrogram", "depth")]
)
@pytest.mark.parametrize("fusion", ["bottleneck", "vanilla"])
def test_any_number_of_modalities(modalities, fusion):
    model = model_of(*modalities, fusion=fusion)
    inputs = inputs_of(model)
    lengths = {modalities[-1]: int32(2, 0 if len(modalities) > 1 else 1)}
    assert_as_expected(rollout(model, inputs, lengths), expected_rollout(model, inputs, lengths))


@pytest.mark.parametrize("given", ["rgb", "spectrogram"])
@models
def test_a_modality_that_is_left_out(options, given):
    model = tiny(**options)
    inputs = {given: random_inputs()[given]}
    assert_as_expected(rollout(model, inputs), expected_rollout(model, inputs, None))


@pytest.mark.parametrize("heads", ["max", [2], [0, 3]], ids=str)
@pytest.mark.parametrize("residual", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("fusion", ["bottleneck", "vanilla"])
def test_heads_and_the_residual_weight(heads, residual, fusion):
    model, inputs = tiny(fusion=fusion), random_inputs()
    result = rollout(model, inputs, heads=heads, residual=residual)
    assert_as_expected(result, expected_rollout(model, inputs, None, heads, residual))


@models
@lengths
def test_a_class_is_followed_by_its_gradient(options, lengths):
    model, inputs = tiny(**options), random_inputs()
    result = rollout(model, inputs, lengths, target=torch.tensor([1, 7, 1]))
    assert_as_expected(result, expected_for_class(model, inputs, lengths, [1, 7, 1]))


def test_classes_have_different_maps():
    model, inputs = tiny(), random_inputs()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    first, second = (rollout(model, inputs, target=target)["rgb"] for target in (0, 1))
    assert (first - second).abs().max() > 0.01


def test_a_class_without_any_weight_has_no_map():
    model = tiny()
    torch.nn.init.zeros_(model.head.weight)
    result = rollout(model, random_inputs(), target=0)
    assert all(torch.equal(x, torch.zeros_like(x)) for x in result.values())


@models
@pytest.mark.parametrize("target", [None, 3])
def test_shares_sum_to_one(options, target):
    model, inputs = tiny(**options), random_inputs()
    lengths = {"rgb": int32(0, 0, 3), "spectrogram": int32(9, 0, 2)}
    result = rollout(model, inputs, lengths, target=target)
    expected = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(total(result), expected)
    assert all((x >= 0).all() for x in (*result.values(), result.bottlenecks))
    assert not result["rgb"][0].any()
    assert not result["rgb"][2].flatten()[2:].any(), "patches of padding"


@pytest.mark.parametrize("classifier", ["gap", "gap_per_modality"])
def test_a_head_that_pools_starts_at_all_tokens(classifier):
    model = tiny(classifier=classifier)
    inputs, counts = random_inputs(batch=1), {"rgb": 3, "spectrogram": 8}
    result = rollout(model, inputs, {m: int32(n) for m, n in counts.items()})
    with torch.no_grad():
        forward = Materialised(model, inputs, counts)
    product = forward.rollout(lambda number, matrices: matrices.mean(0))
    rows = {m: slice(start, start + counts[m]) for m, start in forward.cls_rows().items()}
    each = {m: forward.split(product[r].mean(0))[0] for m, r in rows.items()}
    for source, expected in each.items():
        for m, x in result.by_source[source].items():
            torch.testing.assert_close(x.flatten()[: counts[m]], expected[m], **EXACT)
    weights = {m: n / 11 if classifier == "gap" else 0.5 for m, n in counts.items()}
    mean = sum(weights[m] * each[m]["rgb"] for m in each)
    torch.testing.assert_close(result["rgb"].flatten()[:3], mean, **EXACT)
    torch.testing.assert_close(total(result), torch.ones(1, dtype=torch.float64))
    assert not result.cls["rgb"].any()


def test_sampled_frames():
    patch = {"rgb": (1, 16, 16), "spectrogram": (16, 16)}
    model = tiny(n_sampled_frames=2, input_size={"rgb": (5, 32, 32)}, patch_size=patch)
    inputs = inputs_of(model)
    result = rollout(model, inputs)
    assert result["rgb"].shape == (2, 2, 2, 2)
    assert_as_expected(result, expected_rollout(model, inputs, None))


def test_three_modalities_in_order():
    model = model_of("rgb", "spectrogram", "depth", update_order=("depth", "rgb", "spectrogram"))
    inputs, lengths = inputs_of(model), {"rgb": int32(0, 4), "depth": int32(2, 0)}
    result = rollout(model, inputs, lengths)
    assert_as_expected(result, expected_rollout(model, inputs, lengths))
    assert result.read["rgb"].shape == (2, 2, 4)
    by_class = rollout(model, inputs, lengths, target=1)
    assert_as_expected(by_class, expected_for_class(model, inputs, lengths, [1, 1]))


@pytest.mark.parametrize("options", [{"n_bottlenecks": 0}, {"fusion_layer": 4}], ids=str)
def test_without_slots_no_mass_crosses(options):
    result = rollout(tiny(**options), random_inputs())
    assert not result.by_source["rgb"]["spectrogram"].any()
    assert not result.by_source["spectrogram"]["rgb"].any()
    assert result.bottlenecks.shape == (3, 0)
    assert result.read == {}


def test_what_is_read_and_written_is_what_crosses():
    """With one fused layer before the last, slots carry all that comes from the other modality."""
    model, inputs = tiny(fusion_layer=2), random_inputs()
    result = rollout(model, inputs)
    assert result.read["rgb"].shape == (3, 2, 4)
    assert not result.written["rgb"][:, 1].any(), "nobody reads what the last layer writes"
    crossed = result.by_source["rgb"]["spectrogram"].flatten(1).sum(1)
    assert (crossed > 0).all()
    # Mass passes from the slots of the last layer, in equal parts to both streams' slots.
    read = sum(x[:, 1].sum(1) for x in result.read.values())
    written = sum(x[:, 0].sum(1) for x in result.written.values())
    assert (written < read).all()
    assert (written > 0).all()


@pytest.mark.parametrize("backend", backends_of("bottleneck_attention"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backends_and_dtypes(backend, dtype):
    model, inputs = tiny().to(dtype).double(), random_inputs()
    inputs = {m: x.to(dtype).double() for m, x in inputs.items()}
    exact = rollout(model, inputs)
    model.to(dtype)
    inputs = {m: x.to(dtype) for m, x in inputs.items()}
    eager = rollout(model.set_backend("reference"), inputs)
    actual = rollout(model.set_backend(backend), inputs)
    for m, x in actual.items():
        assert x.dtype == torch.float32
        assert_close_to_exact(x, eager[m], exact[m], name=m)
    torch.testing.assert_close(total(actual), torch.ones(3))


@pytest.mark.parametrize("target", [None, 3])
def test_autocast_is_that_of_the_forward(target):
    """In bfloat16 the maps are not those of float32, and their sums are as exact."""
    model = tiny().float()
    inputs = random_inputs(dtype=torch.float32)
    plain = rollout(model, inputs, target=target)
    with torch.autocast("cpu", torch.bfloat16):
        cast = rollout(model, inputs, target=target)
    assert not torch.equal(plain["rgb"], cast["rgb"])
    torch.testing.assert_close(plain["rgb"], cast["rgb"], atol=0.02, rtol=0)
    torch.testing.assert_close(total(cast), torch.ones(3))


@models
@pytest.mark.parametrize("target", [None, 3])
def test_a_last_layer_of_cls_rows_gives_the_same(options, target):
    model, inputs = tiny(**options), random_inputs()
    whole = rollout(model, inputs, target=target)
    model.set_execution(cls_only=True)
    torch.testing.assert_close(rollout(model, inputs, target=target), whole, **EXACT)


@changes
@pytest.mark.parametrize("part", ["norm1", "attn.qkv"])
def test_replaced_and_hooked_modules_count(change, part):
    model, inputs = tiny(), random_inputs()
    before = rollout(model, inputs)
    block = model.blocks[0].block_of("rgb")
    owner, name = (block.attn, "qkv") if part == "attn.qkv" else (block, part)
    setattr(owner, name, change(getattr(owner, name)))
    after = rollout(model, inputs)
    assert (before["rgb"] - after["rgb"]).abs().max() > 1e-3
    torch.testing.assert_close(total(after), torch.ones(3, dtype=torch.float64))


def test_a_rollout_leaves_no_trace():
    model, inputs = tiny(), random_inputs()
    logits = model(inputs)
    for target in (None, 1):
        rollout(model, inputs, target=target)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model(inputs), logits)
    with torch.inference_mode():
        result = rollout(model, inputs)
    torch.testing.assert_close(result, rollout(model, inputs))


def test_hooks_are_gone_after_a_failure():
    model, inputs = tiny(), random_inputs()
    model.blocks[1].rgb.norm1.weight = torch.nn.Parameter(torch.ones(5))
    with pytest.raises((RuntimeError, ValueError)):
        rollout(model, inputs)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_start_at_other_tokens():
    model, inputs = tiny(), random_inputs()
    whole = rollout(model, inputs, residual=1.0, start={"rgb": [1, 3]})
    expected = torch.zeros(3, 8, dtype=torch.float64)
    expected[:, [0, 2]] = 0.25
    torch.testing.assert_close(whole["rgb"].flatten(1), expected)
    torch.testing.assert_close(whole.cls["spectrogram"], torch.full_like(expected[:, 0], 0.5))


class Sizes(TorchDispatchMode):
    """The largest tensor that anything returns, in elements."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("fusion", ["bottleneck", "vanilla"])
def test_memory_is_linear_in_the_tokens(monkeypatch, fusion):
    monkeypatch.setattr(attention, "TILE", 0)
    largest = []
    for frames in (8, 16):
        model = tiny(fusion=fusion, input_size={"rgb": (frames, 112, 112)}, num_layers=2)
        inputs = {m: x[:1] for m, x in inputs_of(model, batch=1).items()}
        with Sizes() as sizes:
            rollout(model, inputs)
        largest.append(sizes.largest)
    assert largest[1] < 2.1 * largest[0]


@pytest.mark.parametrize("fusion", ["bottleneck", "vanilla"])
def test_cost_is_less_than_that_of_two_forwards(fusion):
    """Of two layers of MBT-B on the paper's eight seconds; no tensor is allocated here."""
    with torch.device("meta"):
        model = create_model("mbt_base", fusion=fusion, num_layers=2, fusion_layer=1).eval()
    weights = {name: x.shape for name, x in model.state_dict().items()}
    with FakeTensorMode():
        weights = {name: torch.zeros(shape) for name, shape in weights.items()}
        model.load_state_dict(weights, assign=True)
        shapes = {m: model.embedding(m).input_shape for m in model.config.modalities}
        inputs = {m: torch.zeros(1, *shape) for m, shape in shapes.items()}
        counts = []
        for run in (model, lambda inputs: rollout(model, inputs)):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                run(inputs)
            counts.append(counter.get_total_flops())
    assert counts[0] < counts[1] < 1.5 * counts[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": "min"}, "heads must be 'mean', 'max' or numbers of heads, got 'min'"),
        ({"heads": [4]}, r"heads must be in 0..3, got \[4\]"),
        ({"heads": []}, r"heads must be in 0..3, got \[\]"),
        ({"heads": 2}, "heads must be 'mean', 'max' or numbers of heads, got 2"),
        ({"residual": 1.5}, "residual must be from 0 to 1, got 1.5"),
        ({"residual": "half"}, "residual must be a number, got 'half'"),
        ({"residual": 0.5, "target": 1}, "residual must be None with a target, got 0.5"),
        ({"target": 10}, "target must be in 0..9, the classes, got 10"),
        ({"target": 1.0}, "target must be an integer or a tensor, got 1.0"),
        ({"target": torch.zeros(3)}, "target must hold integers, got torch.float32"),
        ({"target": int32(1)}, r"target must have shape \[3\], got \[1\]"),
        ({"start": {"rgb": [9]}}, r"start\['rgb'\] must hold own tokens, 0..8, got \[9\]"),
        ({"start": {"depth": [0]}}, "start must be of given inputs, got 'depth' without input"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        rollout(tiny(), random_inputs(), **arguments)


def test_bad_models():
    with pytest.raises(ValueError, match="model must be in eval mode, got one in training mode"):
        rollout(tiny().train(), random_inputs())
    with pytest.raises(TypeError, match=r"model must be an MBT.*, got Linear"):
        rollout(torch.nn.Linear(1, 1), random_inputs())
