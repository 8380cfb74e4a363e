"""A classifier on fused encoders of images and spectrograms: what it refuses, and what it keeps."""

import pytest
import torch
import torch.distributed as dist
from encoder_cases import TimmViT
from model_cases import int32
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mbt_fast import export
from mbt_fast.errors import CheckpointError
from mbt_fast.models.fused_classifier import FusedClassifier, FusedConfig
from mbt_fast.models.saved import load_model, save_model

CLASSES, FRAMES = 4, 2
SIZES = {"rgb": (FRAMES, 12, 8), "flow": (1, 12, 8)}


def classifier():
    config = FusedConfig(
        towers={m: {"library": "timm", "name": "vit", "options": {}} for m in SIZES},
        input_size=SIZES,
        fusion_layer=1,
        n_bottlenecks=2,
        num_classes=CLASSES,
    )
    model = FusedClassifier(config, {m: TimmViT() for m in SIZES})
    for head in model.head.values():
        nn.init.normal_(head.weight)
    return model


def clips(batch=2):
    return {m: torch.randn(batch, 3, *size) for m, size in SIZES.items()}


GOOD = clips()
BAD = {
    "misspelt": ({"rbg": GOOD["rgb"]}, None, ValueError, "must name some of rgb, flow, got 'rbg'"),
    "nothing": ({}, None, ValueError, "inputs must name some of rgb, flow, got none"),
    "not a mapping": (GOOD["rgb"], None, TypeError, "inputs must be a mapping"),
    "batch": (
        {**GOOD, "flow": GOOD["flow"][:1]}, None, ValueError,
        r"inputs\['flow'\] must have shape \[2, 3, 1, 12, 8\], got \[1, 3, 1, 12, 8\]",
    ),
    "frames": (
        {"rgb": GOOD["rgb"][:, :, :1]}, None, ValueError,
        r"inputs\['rgb'\] must have shape \[2, 3, 2, 12, 8\], got \[2, 3, 1, 12, 8\]",
    ),
    "dtype": ({"rgb": GOOD["rgb"].byte()}, None, TypeError, "dtype torch.float32 like the"),
    "lengths list": (GOOD, [], TypeError, "lengths must be a mapping .* got list"),
    "length name": (GOOD, {"rbg": int32(1, 1)}, ValueError, "lengths must be of given inputs"),
    "float length": (GOOD, {"rgb": torch.ones(2)}, TypeError, r"lengths\['rgb'\] must be an int32"),
    "negative length": (GOOD, {"rgb": int32(1, -1)}, ValueError, r"must be in 0\.\.14, .* got -1"),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "lengths", "error", "message"), BAD.values(), ids=BAD)
def test_a_misspelt_modality_was_passed_over(inputs, lengths, error, message):
    """And with it everything else that the docstring says is refused."""
    with pytest.raises(error, match=message):
        classifier()(inputs, lengths)


@pytest.mark.parametrize("lengths", [None, {"rgb": int32(3, 0)}], ids=["no lengths", "lengths"])
def test_a_classifier_of_videos_could_not_be_exported(lengths):
    """Its batch was held fixed."""
    model = classifier().eval()
    program = export(model, clips(), lengths)
    inputs = clips(3)
    lengths = lengths and {"rgb": int32(0, 1, 14)}
    expected = model.set_backend("sdpa")(inputs, lengths)
    arguments = (inputs,) if lengths is None else (inputs, lengths)
    torch.testing.assert_close(program.module()(*arguments), expected)


def test_weights_of_another_model_were_saved(tmp_path):
    model = classifier()
    weights = model.state_dict()
    wrong = {**weights, "head.rgb.bias": torch.zeros(CLASSES + 1), "extra": torch.zeros(1)}
    mixed = {**weights, "head.rgb.bias": torch.zeros(CLASSES).half()}
    for state_dict, message in (
        (wrong, r"unexpected extra; misshapen head\.rgb\.bias must be \[4\], got \[5\]"),
        (mixed, r"must be float32 like most, got head\.rgb\.bias \(float16\)"),
    ):
        with pytest.raises(CheckpointError, match=message):
            save_model(tmp_path / "model", model, state_dict)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_loaded_classifier_was_always_float32(tmp_path, monkeypatch, dtype):
    model = classifier().to(dtype)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr("mbt_fast.models.fused_classifier.build_tower", lambda record: TimmViT())
    loaded = load_model(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
        assert loaded[name].dtype == dtype, name


def test_lengths_say_present_or_absent():
    model, inputs = classifier().eval(), clips()
    whole = model(inputs)
    for present in (int32(1, 14), torch.tensor([14, 1]), None):
        torch.testing.assert_close(model(inputs, {"rgb": present}), whole)
    absent = model(inputs, {"rgb": int32(0, 0)})
    torch.testing.assert_close(absent, model({"flow": inputs["flow"]}))


def test_a_modality_left_out_on_one_rank_hung_the_others():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, inputs = classifier(), clips()
        wrapped = DistributedDataParallel(model.train())
        wrapped(inputs)
        with pytest.raises(ValueError, match=r"'rgb' on every rank .*, and 0 in lengths"):
            wrapped({"flow": inputs["flow"]})
        model.fused.towers["rgb"].requires_grad_(False)
        model.head["rgb"].requires_grad_(False)
        with pytest.raises(ValueError, match="'rgb' on every rank"):  # for its frame embedding
            DistributedDataParallel(model)({"flow": inputs["flow"]})
        model.frame_embed.requires_grad_(False)
        DistributedDataParallel(model)({"flow": inputs["flow"]})
    finally:
        dist.destroy_process_group()
