"""FLOPs: the closed form against an independent table, torch's counter and the paper's figure."""

import csv
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mbt_fast import MBTConfig, create_model
from mbt_fast.flops import forward_flops, training_flops
from mbt_fast.profiling import figure3

GIGA = 1e9
SETTINGS = {  # frames, frames per tubelet, spectrogram frames
    "A": (8, 1, 800),  # the paper's text, t = 8 s
    "B": (8, 1, 400),  # t = 4 s
    "C": (4, 1, 400),
    "C2": (8, 2, 400),  # Figure 3
    "D": (32, 2, 800),  # the released checkpoints
}
VARIANTS = {
    "late": {},
    "joint": {"fusion": "vanilla", "share_encoder": True},
    "pairwise": {"fusion": "vanilla"},
    "official": {"fusion": "vanilla"},
    "B=4": {"n_bottlenecks": 4},
    "B=5": {"n_bottlenecks": 5},
}


def table():
    with open(Path(__file__).parents[1] / "golden" / "flops.csv", newline="") as file:
        return list(csv.DictReader(file))


def config(setting, **overrides):
    frames, tubelet, time = SETTINGS[setting]
    return MBTConfig(
        input_size={"rgb": (frames, 224, 224), "spectrogram": (time, 128)},
        patch_size={"rgb": (tubelet, 16, 16), "spectrogram": (16, 16)},
        **overrides,
    )


def printed(value, text):
    """Whether ``value`` rounds to what is printed, in GFLOPs."""
    decimals = len(text.partition(".")[2]) if "." in text else 0
    return abs(value / GIGA - float(text)) <= 0.5 * 10**-decimals + 0.005


@pytest.mark.parametrize(
    "row", table(), ids=lambda r: f"{r['setting']}-{r['variant']}-{r['fusion_layer']}"
)
def test_table(row):
    model = config(
        row["setting"], fusion_layer=int(row["fusion_layer"]), **VARIANTS[row["variant"]]
    )
    cost = forward_flops(model, "official" if row["variant"] == "official" else "efficient")
    assert printed(cost.total, row["total"])
    if row["linear"]:
        assert printed(cost.linear, row["linear"])
        assert printed(cost.attention, row["attention"])
    assert cost.total == cost.linear + cost.attention + cost.stem_head


def test_stem_and_head():
    expected = {"A": 2.32, "B": 2.09, "C": 1.16, "C2": 2.09, "D": 7.87}
    for setting, value in expected.items():
        assert round(forward_flops(config(setting)).stem_head / GIGA, 2) == value
    # Tubelets of two frames cost more in the stem, and give the same tokens.
    assert forward_flops(config("C")).layers == forward_flops(config("C2")).layers


def test_cls_only_last_layer():
    """A: layer 11 costs 36.105 in full and 4.696 for CLS alone; D: 81.008 and 8.401."""
    for setting, full, saved in (("A", 36.105, 4.696), ("D", 81.008, 8.401)):
        whole = forward_flops(config(setting))
        cls = forward_flops(config(setting), cls_only=True)
        assert round(whole.layers[-1].total / GIGA, 3) == full
        assert round(cls.layers[-1].total / GIGA, 3) == saved
        assert whole.layers[:-1] == cls.layers[:-1]


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"share_encoder": True},
        {"fusion": "vanilla"},
        {"fusion": "vanilla", "share_encoder": True},
        {"fusion_layer": 0, "n_bottlenecks": 7},
        {"fusion_layer": 4},
        {"modalities": ("rgb",)},
        {"modalities": ("spectrogram",), "fusion": "vanilla"},
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("cls_only", [False, True])
def test_counter_agrees_exactly(overrides, backend, cls_only):
    model = create_model("mbt_tiny", **overrides).set_backend(backend)
    model.set_execution(cls_only=cls_only)
    batch = 2
    inputs = {
        m: torch.randn(batch, *model.embedding(m).input_shape) for m in model.config.modalities
    }
    with FlopCounterMode(display=False) as forward:
        logits = model(inputs)
    assert forward.get_total_flops() == batch * forward_flops(model.config, cls_only=cls_only).total
    if backend == "sdpa":  # the reference's backward recomputes nothing
        with FlopCounterMode(display=False) as backward:
            logits.sum().backward()
        both = forward.get_total_flops() + backward.get_total_flops()
        assert both == batch * training_flops(model.config, cls_only=cls_only).total


@pytest.mark.parametrize(
    "overrides",
    [
        {"classifier": "gap"},
        {"classifier": "gap_per_modality", "fusion": "vanilla"},
        {"classifier": "gap", "fusion": "vanilla", "share_encoder": True},
        {"n_sampled_frames": 2, "input_size": {"rgb": (8, 32, 32)}},
    ],
    ids=str,
)
def test_counter_agrees_with_heads_that_pool_and_sampled_frames(overrides):
    model = create_model("mbt_tiny", **overrides).set_backend("sdpa")
    shapes = {m: model.embedding(m).input_shape for m in model.config.modalities}
    with FlopCounterMode(display=False) as counter:
        logits = model({m: torch.randn(2, *shape) for m, shape in shapes.items()})
    assert counter.get_total_flops() == 2 * forward_flops(model.config).total
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    both = counter.get_total_flops() + backward.get_total_flops()
    assert both == 2 * training_flops(model.config).total


def test_figure_3_to_within_the_element_wise_share():
    """XLA counts 0.5 to 0.8 % beyond matrix products in the official code."""
    points = figure3.points()
    assert len(points) == 14
    for point in points:
        assert 0.0045 <= point.element_wise_share <= 0.008
    late = {p.fusion: p.ours for p in points if p.fusion_layer == 12}
    assert late["bottleneck"] == late["vanilla"]
    early = next(p for p in points if p.fusion == "vanilla" and p.fusion_layer == 0)
    assert early.ours > 2 * late["vanilla"] > 1.6 * early.efficient


def test_unknown_cost_is_refused():
    with pytest.raises(ValueError, match="cost must be one of efficient, official, got 'fast'"):
        forward_flops(MBTConfig(), "fast")
