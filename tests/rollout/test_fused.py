"""Attention rollout of fused encoders, against whole matrices of the encoders' own attention."""

import sys
from pathlib import Path

import encoder_cases
import pytest
import torch
from encoder_cases import (
    DIM,
    IMAGE,
    LAYERS,
    HuggingFace4,
    HuggingFace4Classifier,
    HuggingFace5,
    TimmViT,
    TimmViT05,
    torch_encoder,
)
from model_cases import int32

from mbt_fast import fuse, rollout
from mbt_fast.models.encoders import hf_vit
from mbt_fast.models.fused_classifier import FusedClassifier, FusedConfig

ENCODERS = {
    "timm": TimmViT,
    "timm, normed heads": lambda: TimmViT(scale_norm=True, qk_norm=True, registers=2),
    "timm 0.5, distilled": TimmViT05,
    "hugging face 4": HuggingFace4,
    "hugging face 4, classifier": HuggingFace4Classifier,
    "hugging face 5": HuggingFace5,
    "torch": torch_encoder,
}
encoders = pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS.keys())
CLASS_TOKENS = {TimmViT: 1, TimmViT05: 2, HuggingFace4: 2, HuggingFace5: 2}
SOUND = 5
ROOT = Path(__file__).parents[2]


def fused(make, fusion_layer=1, n_bottlenecks=2, batch=2):
    towers = {"rgb": make(), "spectrogram": torch_encoder()}
    model = fuse(towers, fusion_layer, n_bottlenecks).double().eval()
    image = not isinstance(towers["rgb"], torch.nn.TransformerEncoder)
    rgb = torch.randn(batch, *IMAGE) if image else torch.randn(batch, SOUND + 2, DIM)
    inputs = {"rgb": rgb, "spectrogram": torch.randn(batch, SOUND, DIM)}
    return model, {m: x.double() for m, x in inputs.items()}


def run(layer, x, monkeypatch):
    """A layer's own forward, and the mean of its heads' probabilities."""
    if isinstance(layer, torch.nn.TransformerEncoderLayer):
        normed = layer.norm1(x)
        return layer(x), layer.self_attn(normed, normed, normed, need_weights=True)[1]
    seen = []

    def attend(query, key, value, heads=encoder_cases.HEADS):
        parts = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
        query, key, value = parts
        seen.append(torch.softmax(query @ key.mT * query.shape[-1] ** -0.5, dim=-1))
        return (seen[-1] @ value).transpose(1, 2).flatten(2)

    monkeypatch.setattr(encoder_cases, "attend", attend)
    out = layer(x)
    (p,) = seen
    return out[0] if isinstance(out, tuple) else out, p.mean(dim=1)


@torch.no_grad()
def product(model, inputs, monkeypatch):
    """Rollout of all rows of both streams, the learned tokens last: ``[B, rows, columns]``."""
    streams = model.embed_all(inputs)
    own = [x.shape[1] for x in streams.values()]
    total, slots = sum(own), model.n_slots
    batch = len(next(iter(streams.values())))
    result = torch.eye(total, total + slots, dtype=torch.float64).repeat(batch, 1, 1)
    for index in range(LAYERS):
        fuses = slots and index >= model.fusion_layer
        if fuses and index == model.fusion_layer:
            tokens = model.bottleneck_tokens.expand(batch, -1, -1)
            streams = {m: torch.cat([x, tokens], dim=1) for m, x in streams.items()}
            learned = torch.eye(total + slots, dtype=torch.float64)[total:].repeat(batch, 1, 1)
            parts = result.split(own, dim=1)
            result = torch.cat([t for part in parts for t in (part, learned)], dim=1)
        blocks = []
        for m, x in streams.items():
            streams[m], p = run(model.layers_of(m)[index], x, monkeypatch)
            blocks.append(p)
        matrix = torch.stack([torch.block_diag(*pair) for pair in zip(*blocks, strict=True)])
        result = (result + matrix @ result) / 2
        if fuses:
            ends = [own[0], own[0] + slots + own[1]]
            mean = sum(x[:, -slots:] for x in streams.values()) / 2
            streams = {m: torch.cat([x[:, :-slots], mean], dim=1) for m, x in streams.items()}
            rows = sum(result[:, end : end + slots] for end in ends) / 2
            for end in ends:
                result[:, end : end + slots] = rows
    return result, own


@encoders
@pytest.mark.parametrize(("fusion_layer", "n_bottlenecks"), [(1, 2), (0, 3), (LAYERS, 2), (1, 0)])
def test_rollout_is_the_product_of_all_layers(make, fusion_layer, n_bottlenecks, monkeypatch):
    model, inputs = fused(make, fusion_layer, n_bottlenecks)
    whole, (n_rgb, n_sound) = product(model, inputs, monkeypatch)
    monkeypatch.undo()
    start = {"rgb": [0], "spectrogram": [0]}
    result = rollout(model, inputs, start=start)
    slots = model.n_slots if fusion_layer < LAYERS else 0
    for source, row in (("rgb", 0), ("spectrogram", n_rgb + slots)):
        own = whole[:, row].split([n_rgb, n_sound, model.n_slots], dim=1)
        maps = result.by_source[source]
        for m, masses in zip(("rgb", "spectrogram"), own, strict=False):
            patches = maps[m].flatten(1)
            expected = masses[:, masses.shape[1] - patches.shape[1] :]
            torch.testing.assert_close(patches, expected, rtol=0, atol=1e-10)
    ones = sum(result.shares.values()) + result.bottlenecks.sum(1)
    torch.testing.assert_close(ones, torch.ones(2, dtype=torch.float64))


def test_padding_is_that_of_shorter_inputs():
    model, inputs = fused(torch_encoder)
    lengths = {"rgb": int32(7, 4), "spectrogram": int32(0, 3)}
    result = rollout(model, inputs, lengths)
    first = rollout(model, {"rgb": inputs["rgb"][:1]})
    short = {"rgb": inputs["rgb"][1:, :4], "spectrogram": inputs["spectrogram"][1:, :3]}
    second = rollout(model, short)
    torch.testing.assert_close(result["rgb"][:1], first["rgb"])
    assert not result["spectrogram"][0].any()
    torch.testing.assert_close(result["rgb"][1:, :4], second["rgb"])
    torch.testing.assert_close(result["spectrogram"][1:, :3], second["spectrogram"])
    assert not result["rgb"][1, 4:].any()


@encoders
def test_it_starts_at_the_class_tokens_or_at_all(make):
    model, inputs = fused(make)
    default = rollout(model, inputs, residual=1.0)
    sound = torch.full((2, SOUND), 0.5 / SOUND, dtype=torch.float64)
    torch.testing.assert_close(default["spectrogram"], sound)
    kind = type(model.family_of("rgb").body(model.towers["rgb"]))
    cls = torch.full((2,), 0.5 if kind in CLASS_TOKENS else 0.0, dtype=torch.float64)
    torch.testing.assert_close(default.cls["rgb"], cls)


class Classifier(FusedClassifier):
    """Of encoders that no library knows."""

    def __init__(self, towers, sizes, fusion_layer=1):
        config = FusedConfig(
            towers={m: {} for m in towers}, input_size=sizes, fusion_layer=fusion_layer,
            n_bottlenecks=2, num_classes=4,
        )  # fmt: skip
        super().__init__(config, towers)
        for head in self.head.values():
            torch.nn.init.normal_(head.weight)


def classifier(frames=2):
    sizes = {"rgb": (frames, *IMAGE[1:]), "spectrogram": IMAGE[1:]}
    model = Classifier({"rgb": TimmViT(), "spectrogram": TimmViT(registers=1)}, sizes)
    return model.double().eval(), {
        "rgb": torch.randn(2, 3, *sizes["rgb"], dtype=torch.float64),
        "spectrogram": torch.randn(2, *sizes["spectrogram"], dtype=torch.float64),
    }


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("target", [None, 3])
def test_maps_of_a_classifier(frames, target):
    model, inputs = classifier(frames)
    result = rollout(model, inputs, {"spectrogram": int32(7, 0)}, target=target)
    assert {m: tuple(x.shape) for m, x in result.items()} == {
        "rgb": (2, frames, 3, 2),
        "spectrogram": (2, 3, 2),
    }
    assert not result["spectrogram"][1].any()
    ones = sum(result.shares.values()) + result.bottlenecks.sum(1)
    torch.testing.assert_close(ones, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("make", [make for name, make in ENCODERS.items() if name != "torch"])
def test_classes_have_different_maps(make, monkeypatch):
    """Every family that embeds clips gives attention's gradients."""
    # the encoders of the tests have no positions to interpolate
    monkeypatch.setattr(hf_vit._HuggingFace, "embed_resized", hf_vit._HuggingFace.embed)
    towers = {"rgb": make(), "spectrogram": TimmViT()}
    model = Classifier(towers, {"rgb": (1, *IMAGE[1:]), "spectrogram": IMAGE[1:]}).double().eval()
    inputs = {
        "rgb": torch.randn(1, 3, 1, *IMAGE[1:], dtype=torch.float64),
        "spectrogram": torch.randn(1, *IMAGE[1:], dtype=torch.float64),
    }
    first, second = (rollout(model, inputs, target=target)["rgb"] for target in (0, 1))
    assert (first - second).abs().max() > 1e-4
    for head in model.head.values():
        torch.nn.init.zeros_(head.weight)
    assert not rollout(model, inputs, target=0)["rgb"].any()


def test_axes_of_a_spectrogram_transformer(monkeypatch):
    """AST's tokens go along time first; its map is ``[time, mel]`` like those of all models."""
    # transformers would take our folder kernels/ for a package of that name
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path).resolve() != ROOT])
    transformers = pytest.importorskip("transformers")
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ASTConfig(
        **common, intermediate_size=32, num_mel_bins=32, max_length=64, patch_size=16,
        time_stride=8, frequency_stride=16,
    )  # fmt: skip
    towers = {"spectrogram": transformers.ASTModel(config)}
    model = fuse(towers, 2).eval()
    x = torch.randn(1, 64, 32)
    result = rollout(model, {"spectrogram": x}, start={"spectrogram": [2 + 3]}, residual=1.0)
    expected = torch.zeros(1, 7, 2)
    expected[0, 3, 0] = 1
    torch.testing.assert_close(result["spectrogram"], expected)


def test_a_target_needs_a_classifier():
    model, inputs = fused(TimmViT)
    with pytest.raises(ValueError, match="target must be None without a classifier, got 1"):
        rollout(model, inputs, target=1)
