"""Fused encoders: the plain statement, padding, shared parameters, and bad arguments."""

import copy
import re

import pytest
import torch
from encoder_cases import (
    DIM,
    IMAGE,
    LAYERS,
    HuggingFace4,
    HuggingFace4Classifier,
    HuggingFace5,
    TimmBlock,
    TimmViT,
    TimmViT05,
    torch_encoder,
)
from model_cases import hooked, int32
from torch import nn

import mbt_fast
from mbt_fast import create_model, fuse
from mbt_fast.testing import assert_close_to_exact

FAMILIES = {
    "timm": TimmViT,
    "hugging face 4": HuggingFace4,
    "hugging face 5": HuggingFace5,
    "torch": torch_encoder,
}
VARIANTS = {
    "timm, tanh-GELU": lambda: TimmViT(act=nn.GELU(approximate="tanh")),
    "timm, ReLU and another eps": lambda: TimmViT(act=nn.ReLU(), eps=1e-2),
    "timm, no qkv bias": lambda: TimmViT(qkv_bias=False),
    "timm, registers": lambda: TimmViT(registers=4),
    "timm, layer scale": lambda: TimmViT(scale=True),
    "timm, normed queries and keys": lambda: TimmViT(qk_norm=True),
    "timm, normed heads": lambda: TimmViT(scale_norm=True),
    "timm 0.5, distilled": TimmViT05,
    "hugging face 4, no qkv bias": lambda: HuggingFace4(qkv_bias=False),
    "hugging face 4, classifier": HuggingFace4Classifier,
    "torch, ReLU": lambda: torch_encoder(activation="relu"),
    "torch, no bias": lambda: torch_encoder(bias=False),
}
EVERY = FAMILIES | VARIANTS
families = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())
SOUND = 5  # tokens of the second encoder


def without_head(encoder):
    return getattr(encoder, "vit", encoder)


def layers_of(encoder):
    encoder = without_head(encoder)
    if hasattr(encoder, "encoder"):
        return encoder.encoder.layer
    return getattr(encoder, "blocks", None) or encoder.layers


def own_tokens(encoder, x):
    """What the encoder gives by itself."""
    encoder = without_head(encoder)
    return getattr(encoder, "forward_features", encoder)(x)


def embedded(encoder, x):
    """What the first layer receives when the encoder runs by itself."""
    seen = []
    hook = layers_of(encoder)[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    own_tokens(encoder, x)
    hook.remove()
    return seen[0]


def run_layer(layer, x):
    out = layer(x)
    return out[0] if isinstance(out, tuple) else out


def final_norm(encoder):
    encoder = without_head(encoder)
    return getattr(encoder, "layernorm", None) or encoder.norm


def stated(model, inputs, seed=0):
    """The meaning: whole layers of the encoders on streams with slots, and the mean of Eq. 9."""
    streams = {m: embedded(model.towers[m], x) for m, x in inputs.items()}
    torch.manual_seed(seed)
    slots = model.n_slots
    for index in range(LAYERS):
        if index == model.fusion_layer and slots:
            tokens = model.bottleneck_tokens
            streams = {
                m: torch.cat([x, tokens.expand(len(x), -1, -1)], dim=1) for m, x in streams.items()
            }
        streams = {m: run_layer(layers_of(model.towers[m])[index], x) for m, x in streams.items()}
        if index >= model.fusion_layer and slots:
            mean = torch.stack([x[:, -slots:] for x in streams.values()]).mean(dim=0)
            streams = {m: torch.cat([x[:, :-slots], mean], dim=1) for m, x in streams.items()}
    own = {m: x[:, : x.shape[1] - slots] for m, x in streams.items()}
    return {m: final_norm(model.towers[m])(x) for m, x in own.items()}


def assert_as_stated(model, inputs):
    """In float64, where no rounding hides anything."""
    model, inputs = model.double(), double(inputs)
    torch.testing.assert_close(model(inputs), stated(model, inputs))


def example_input(encoder, batch):
    encoder = without_head(encoder)
    image = hasattr(encoder, "patch_embed") or hasattr(encoder, "embeddings")
    return torch.randn(batch, *IMAGE) if image else torch.randn(batch, SOUND, DIM)


def example(make=TimmViT, fusion_layer=1, n_bottlenecks=2, batch=2):
    return fused(
        {"rgb": make(), "spectrogram": torch_encoder()}, fusion_layer, n_bottlenecks, batch
    )


def fused(encoders, fusion_layer=1, n_bottlenecks=2, batch=2):
    """The fused model, to be evaluated, and inputs for it."""
    model = fuse(encoders, fusion_layer, n_bottlenecks).eval()
    return model, {m: example_input(encoder, batch) for m, encoder in encoders.items()}


def double(inputs):
    return {m: x.double() for m, x in inputs.items()}


def total(tokens):
    return sum((x * torch.linspace(-1, 1, x.numel()).view_as(x).to(x)).sum() for x in tokens)


def gradients(model, tokens):
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(total(tokens.values()), parameters.values(), allow_unused=True)
    return {name: g for name, g in zip(parameters, grads, strict=True) if g is not None}


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
def test_outputs_and_gradients_are_those_of_the_statement(make):
    model, inputs = example(make)
    wide = copy.deepcopy(model).double()
    actual, eager, exact = model(inputs), stated(model, inputs), stated(wide, double(inputs))
    assert list(actual) == ["rgb", "spectrogram"]
    for modality, tokens in actual.items():
        assert_close_to_exact(tokens, eager[modality], exact[modality], name=modality)
    actual, eager, exact = (
        gradients(m, t) for m, t in ((model, actual), (model, eager), (wide, exact))
    )
    assert set(actual) == set(exact)
    assert "bottleneck_tokens" in actual
    for name, gradient in actual.items():
        assert_close_to_exact(gradient, eager[name], exact[name], name=name)


@families
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_late_fusion_is_the_encoders_bit_for_bit(make, grad, dtype):
    """Without gradients torch's encoder takes its fast path, and so do we."""
    model, inputs = example(make, fusion_layer=LAYERS)
    model, inputs = model.to(dtype), {m: x.to(dtype) for m, x in inputs.items()}
    assert model.bottleneck_tokens is None
    with torch.set_grad_enabled(grad):
        for modality, tokens in model(inputs).items():
            assert torch.equal(tokens, own_tokens(model.towers[modality], inputs[modality]))


@families
def test_below_the_fusion_layer_encoders_run_themselves_bit_for_bit(make):
    model, inputs = example(make, fusion_layer=2)
    encoder, seen = model.towers["rgb"], []
    layers_of(encoder)[1].register_forward_hook(lambda _, __, out: seen.append(out))
    own_tokens(encoder, inputs["rgb"])
    model(inputs)
    own, fused = (out[0] if isinstance(out, tuple) else out for out in seen)
    assert torch.equal(own, fused)


TRAINED = {
    "timm": lambda: TimmViT(drop=0.3, drop_path=0.4),
    "timm 0.5": lambda: TimmViT05(drop_path=0.4),
}


@pytest.mark.parametrize("make", TRAINED.values(), ids=TRAINED.keys())
def test_dropout_and_stochastic_depth_are_the_encoders_own(make):
    """Drawn in the same order, so that the same seed gives the same masks."""
    model, inputs = example(make, batch=8)
    inputs = double(inputs)
    evaluated = model.double()(inputs)
    model.train()
    torch.manual_seed(7)
    trained = model(inputs)
    torch.testing.assert_close(trained, stated(model, inputs, seed=7))
    assert not torch.allclose(trained["rgb"], evaluated["rgb"])


DROPPING = {
    "timm": (lambda: TimmViT(attn_drop=0.1), r"blocks\[1\]\.attn\.attn_drop\.p must .* got 0\.1$"),
    "hugging face": (
        lambda: HuggingFace4(dropout=0.2),
        r"encoder\.layer\[1\]\.attention\.attention\.dropout_prob must .* got 0\.2$",
    ),
    "torch": (
        lambda: torch_encoder(dropout=0.1),
        r"layers\[1\]\.self_attn\.dropout must be 0\.0 \(our attention has none\), got 0\.1$",
    ),
}


@pytest.mark.parametrize(("make", "message"), DROPPING.values(), ids=DROPPING.keys())
def test_attention_dropout_is_refused_in_training_only(make, message):
    """It is the default of ``torch.nn.TransformerEncoderLayer``, and does nothing in eval mode."""
    model, inputs = example(make)
    assert model(inputs)["rgb"].isfinite().all()
    with pytest.raises(ValueError, match=rf"^towers\['rgb'\].*{message}"):
        model.train()(inputs)


def encoder_of(model, modality):
    """A timm-like encoder with the very modules of an ``MBT``."""
    encoder = nn.Module()
    encoder.patch_embed, encoder._pos_embed = model.embedding(modality), nn.Identity()
    encoder.blocks = nn.ModuleList(block_of(layer[modality]) for layer in model.layers)
    encoder.norm = model.norm
    return encoder


def block_of(source):
    """timm's block with the norms, Linears and tanh-GELU of an ``MBT``'s."""
    block = TimmBlock(act=nn.GELU(approximate="tanh"))
    block.norm1, block.norm2 = source.norm1, source.norm2
    block.attn.num_heads = source.attn.num_heads
    block.attn.qkv, block.attn.proj = source.attn.qkv, source.attn.proj
    block.mlp.fc1, block.mlp.fc2 = source.mlp.fc1, source.mlp.fc2
    return block


@pytest.mark.parametrize("fusion_layer", [0, 2, 4])
@pytest.mark.parametrize("lengths", [None, {"rgb": [0, 9, 4], "spectrogram": [5, 0, 9]}])
def test_encoders_with_the_modules_of_mbt_are_mbt(fusion_layer, lengths):
    mbt = create_model("mbt_tiny", fusion_layer=fusion_layer).double().eval()
    model = fuse({m: encoder_of(mbt, m) for m in mbt.config.modalities}, fusion_layer, 4)
    if fusion_layer < 4:
        model.bottleneck_tokens = mbt.bottleneck_tokens
    inputs = {
        m: torch.randn(3, *mbt.embedding(m).input_shape).double() for m in mbt.config.modalities
    }
    if lengths is not None:
        lengths = {m: torch.tensor(values, dtype=torch.int32) for m, values in lengths.items()}
    features = mbt.forward_features(inputs, lengths)
    fused = {m: tokens[:, 0] for m, tokens in model(inputs, lengths).items()}
    if lengths is not None:  # absent examples: zero here, anything in MBT
        features = {m: torch.where(lengths[m][:, None] > 0, x, 0) for m, x in features.items()}
    torch.testing.assert_close(fused, features)
    parameters = list(mbt.blocks.parameters())
    ours, theirs = (
        torch.autograd.grad(total(out.values()), parameters, allow_unused=True)
        for out in (fused, features)
    )
    torch.testing.assert_close(
        [g for g in ours if g is not None], [g for g in theirs if g is not None]
    )


@families
def test_an_example_with_padding_is_the_shorter_example_alone(make):
    model, inputs = example(make, batch=3)
    model, inputs = model.double(), double(inputs)
    valid = [SOUND, 2, 0]
    together = model(inputs, lengths={"spectrogram": int32(*valid)})
    for index, length in enumerate(valid):
        one = {"rgb": inputs["rgb"][index : index + 1]}
        if length:
            one["spectrogram"] = inputs["spectrogram"][index : index + 1, :length]
        alone = model(one)
        torch.testing.assert_close(together["rgb"][index : index + 1], alone["rgb"])
        if length:
            sound = together["spectrogram"][index : index + 1, :length]
            torch.testing.assert_close(sound, alone["spectrogram"])
        assert not together["spectrogram"][index, length:].any()


@families
def test_padding_of_every_encoder_is_masked(make):
    """Below the fusion layer too, where an encoder without padding runs itself."""
    model, inputs = example(make, fusion_layer=2)
    model, inputs = model.double(), double(inputs)
    count = model(inputs)["rgb"].shape[1]
    full = model(inputs, lengths={"rgb": int32(count, count)})
    torch.testing.assert_close(full, model(inputs))
    cut = model(inputs, lengths={"rgb": int32(3, count)})
    assert not torch.allclose(cut["rgb"][0, :3], full["rgb"][0, :3])
    torch.testing.assert_close(cut["rgb"][1], full["rgb"][1])


def test_padding_may_hold_nan():
    model, inputs = example(torch_encoder)
    lengths = {"spectrogram": int32(2, 0)}
    clean = model(inputs, lengths)
    inputs["spectrogram"][0, 2:], inputs["spectrogram"][1] = float("nan"), float("nan")
    assert all(torch.equal(x, clean[m]) for m, x in model(inputs, lengths).items())


def test_a_missing_modality_is_absent_for_all():
    model, inputs = example()
    absent = model(inputs, lengths={"spectrogram": int32(0, 0)})
    alone = model({"rgb": inputs["rgb"]})
    assert list(alone) == ["rgb"]
    torch.testing.assert_close(alone["rgb"], absent["rgb"])
    assert not absent["spectrogram"].any()


def test_three_encoders_of_three_families_fuse():
    encoders = {"rgb": TimmViT(), "spectrogram": HuggingFace5(), "text": torch_encoder()}
    assert_as_stated(*fused(encoders))


def test_one_encoder_may_serve_two_modalities():
    shared = TimmViT()
    model, inputs = fused({"rgb": shared, "flow": shared})
    assert_as_stated(model, inputs)
    assert len(list(model.parameters())) == len(list(shared.parameters())) + 1


@pytest.mark.parametrize("count", [1, 2])
def test_without_anything_to_exchange_there_are_no_bottleneck_tokens(count):
    encoders = dict([("rgb", TimmViT()), ("spectrogram", HuggingFace4())][:count])
    model, inputs = fused(encoders, n_bottlenecks=0 if count == 2 else 4)
    assert model.bottleneck_tokens is None
    for modality, tokens in model(inputs).items():
        assert torch.equal(tokens, own_tokens(encoders[modality], inputs[modality]))


def test_encoders_are_shared_and_train():
    encoder = TimmViT(registers=1)
    model, inputs = example(lambda: encoder)
    assert model.towers["rgb"] is encoder
    before = copy.deepcopy(encoder.state_dict())
    parameters = list(model.parameters())
    assert {id(p) for p in encoder.parameters()} < {id(p) for p in parameters}
    assert len({id(p) for p in parameters}) == len(parameters)
    total(model(inputs).values()).backward()
    torch.optim.SGD(parameters, lr=0.1).step()
    unused = {"head.weight", "head.bias"}
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]) == (name in unused), name


def test_frozen_encoders_leave_the_bottleneck_tokens_trainable():
    frozen = TimmViT().requires_grad_(False)
    model, inputs = example(lambda: frozen)
    total(model(inputs).values()).backward()
    assert model.bottleneck_tokens.grad is not None
    assert all(p.grad is None for p in frozen.parameters())


def test_fuse_leaves_the_mode_of_the_encoders_alone():
    encoder = TimmViT(drop=0.3).train()
    encoder.blocks[1].eval()
    modes = [module.training for module in encoder.modules()]
    fuse({"rgb": encoder, "spectrogram": TimmViT()}, fusion_layer=1)
    assert [module.training for module in encoder.modules()] == modes


def test_bottleneck_tokens_are_drawn_as_in_mbt():
    model = fuse({"rgb": TimmViT().double(), "spectrogram": TimmViT().double()}, 1, 400)
    tokens = model.bottleneck_tokens
    assert tokens.shape == (1, 400, DIM)
    assert tokens.dtype == torch.float64
    assert 0.019 < tokens.std() < 0.021


def test_state_dict_and_copies_are_complete():
    model, inputs = example()
    fresh, _ = example()
    fresh.load_state_dict(model.state_dict())
    assert set(model.state_dict()) >= {"bottleneck_tokens", "towers.rgb.blocks.0.attn.qkv.weight"}
    duplicate = copy.deepcopy(model)
    assert duplicate.towers["rgb"] is not model.towers["rgb"]
    nn.init.zeros_(model.towers["rgb"].norm.weight)
    for other in (fresh, duplicate):
        assert torch.equal(other(inputs)["rgb"], fresh(inputs)["rgb"])
        assert not torch.equal(other(inputs)["rgb"], model(inputs)["rgb"])


class Adapted(nn.Module):
    """A Linear and something learned beside it, without the attributes of a Linear."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.beside = linear, nn.Linear(linear.in_features, linear.out_features)

    def forward(self, x):
        return self.linear(x) + self.beside(x)


PROJECTIONS = {
    "timm": (TimmViT, "blocks.2.attn.qkv"),
    "hugging face 4": (HuggingFace4, "encoder.layer.2.attention.attention.key"),
    "hugging face 5": (HuggingFace5, "layers.2.attention.v_proj"),
}


@pytest.mark.parametrize(("make", "name"), PROJECTIONS.values(), ids=PROJECTIONS.keys())
@pytest.mark.parametrize("change", [Adapted, hooked])
def test_adapters_and_hooks_on_projections_are_used(make, name, change):
    """Put in after fusing."""
    model, inputs = example(make)
    encoder = model.towers["rgb"]
    encoder.set_submodule(name, change(encoder.get_submodule(name)))
    assert_as_stated(model, inputs)


PASSED_OVER = {
    "timm": (TimmViT, ".blocks[2]", "attn", "attn.qkv"),
    "hugging face 4": (HuggingFace4, ".encoder.layer[2]", "attention", "layernorm_before"),
    "hugging face 5": (HuggingFace5, ".layers[2]", "attention", "attention.o_proj"),
    "torch": (torch_encoder, ".layers[2]", "self_attn", "linear1"),
}


@pytest.mark.parametrize(
    ("make", "where", "attention", "part"), PASSED_OVER.values(), ids=PASSED_OVER.keys()
)
@pytest.mark.parametrize("on_layer", [True, False])
def test_hooks_on_a_fused_layer_were_passed_over_without_a_word(
    make, where, attention, part, on_layer, monkeypatch
):
    model, inputs = example(make)
    layer = layers_of(model.towers["rgb"])[2]
    (layer if on_layer else layer.get_submodule(attention)).register_forward_hook(print)
    name = re.escape(f"towers['rgb']{where}" + ("" if on_layer else f".{attention}"))
    with pytest.warns(UserWarning, match=rf"hooks on {name} are not called.* {re.escape(part)}"):
        model(inputs)
    monkeypatch.setattr("mbt_fast.models.encoders.fit.has_hooks", pytest.fail)  # looks no more
    model(inputs)


def test_adapters_may_be_there_before():
    encoder = TimmViT()
    encoder.blocks[2].attn.qkv = Adapted(encoder.blocks[2].attn.qkv)
    assert_as_stated(*example(lambda: encoder))


def test_a_projection_may_be_the_only_one_without_bias():
    """As the key of some encoders."""
    model, inputs = example(HuggingFace5)
    for layer in model.towers["rgb"].layers:
        layer.attention.k_proj.register_parameter("bias", None)
    assert_as_stated(model, inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [lambda: TimmViT(qk_norm=True), TimmViT05, HuggingFace4, HuggingFace5],
    ids=["timm", "timm 0.5", "hugging face 4", "hugging face 5"],
)
@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_fullgraph_equals_eager(make):
    model, inputs = example(make)
    model, inputs = model.double(), double(inputs)
    lengths = {"spectrogram": int32(2, SOUND)}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), model(inputs))
    torch.testing.assert_close(compiled(inputs, lengths), model(inputs, lengths))


@families
def test_autocast(make):
    model, inputs = example(make)
    with torch.autocast("cpu", torch.bfloat16):
        actual, eager = model(inputs), stated(model, inputs)
    exact = stated(copy.deepcopy(model).double(), double(inputs))
    for modality, tokens in actual.items():
        eager[modality] = eager[modality].to(tokens.dtype)
        assert_close_to_exact(tokens, eager[modality], exact[modality], name=modality)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_set_backend(backend):
    model, inputs = example()
    torch.testing.assert_close(model.set_backend(backend)(inputs), stated(model, inputs))
    with pytest.raises(mbt_fast.dispatch.BackendError):
        model.set_backend("cuda")(inputs)
    with pytest.raises(ValueError, match="backend must be one of"):
        model.set_backend("fastest")


def test_encoders_on_the_meta_device_fuse():
    """To be filled from a checkpoint later."""
    with torch.device("meta"):
        model = fuse({"rgb": TimmViT(), "spectrogram": torch_encoder()}, fusion_layer=1)
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"towers": [TimmViT()]}, TypeError, "towers must be a mapping"),
        ({"towers": {}}, ValueError, "must name at least one"),
        ({"towers": {"a.b": TimmViT()}}, ValueError, "must be public Python identifiers"),
        ({"towers": {"rgb": "vit_base"}}, TypeError, r"towers\['rgb'\] must be a torch.nn.Module"),
        ({"fusion_layer": 4}, ValueError, r"fusion_layer must be in 0..3, the layers, got 4"),
        ({"fusion_layer": 1.0}, TypeError, "fusion_layer must be an integer"),
        ({"n_bottlenecks": -1}, ValueError, "n_bottlenecks must be at least 0, got -1"),
        ({"n_bottlenecks": True}, TypeError, "n_bottlenecks must be an integer"),
    ],
)
def test_arguments_of_fuse_are_checked(changes, error, message):
    with pytest.raises(error, match=message):
        fuse(**{"towers": {"rgb": TimmViT()}, "fusion_layer": 1, "n_bottlenecks": 4, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"inputs": torch.zeros(1)}, TypeError, "inputs must be a mapping"),
        ({"inputs": {}}, ValueError, "inputs must name some of rgb, spectrogram, got none"),
        ({"inputs": {"text": torch.zeros(1)}}, ValueError, "inputs must name some of .*'text'"),
        ({"rgb": [0.0]}, TypeError, r"inputs\['rgb'\] must be a tensor, got list"),
        ({"rgb": torch.zeros(3, *IMAGE)}, ValueError, r"inputs\['spectrogram'\] .* size 3 like"),
        ({"spectrogram": torch.zeros(2, DIM)}, ValueError, r"tokens \[B, N, C\], got \[2, 48\]"),
        ({"lengths": [1]}, TypeError, "lengths must be a mapping"),
        ({"lengths": {"text": int32(1)}}, ValueError, "lengths must be of given inputs"),
        ({"lengths": {"rgb": int32(1, 8)}}, ValueError, r"lengths\['rgb'\] must be in 0..7"),
    ],
)
def test_arguments_of_forward_are_checked(changes, error, message):
    model, inputs = example()
    inputs = changes.pop("inputs", {**inputs, **{m: changes[m] for m in inputs if m in changes}})
    with pytest.raises(error, match=message):
        model(inputs, changes.get("lengths"))
