"""The model with which a run starts: random, from an image ViT, from a checkpoint, or fused."""

import sys
import types
from pathlib import Path

import pytest
import torch
from encoder_cases import TimmViT
from safetensors.torch import save_file
from torch import nn

from mbt_fast import checkpoint
from mbt_fast.checkpoint.shapes import vit_shapes
from mbt_fast.errors import InputError
from mbt_fast.models.fused_classifier import FusedClassifier
from mbt_fast.models.saved import load_model, save_model
from mbt_fast.parallel.machine import Hosts
from mbt_fast.testing import assert_close_to_exact
from mbt_fast.train import start
from mbt_fast.train.config import TrainConfig
from mbt_fast.train.machines import DEFAULT
from mbt_fast.train.world import make_plan
from mbt_fast.train.world_text import ways

TINY = """
[model]
name = "mbt_tiny"
n_bottlenecks = 5
[train]
task = "multilabel"
steps = 2
batch_size = 2
lr = 0.5
"""
CLASSES = 3
ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path):
    def make(*overrides, text=TINY):
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return TrainConfig.from_toml(path, overrides)

    return make


def inputs(batch=2, frames=2, size=32, time=64, mel=32):
    generator = torch.Generator().manual_seed(1)
    return {
        "rgb": torch.randn(batch, 3, frames, size, size, generator=generator),
        "spectrogram": torch.randn(batch, time, mel, generator=generator),
    }


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_random_weights_are_those_of_the_seed_and_leave_the_global_generator_alone(config):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (start.build(config(), CLASSES) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(first, again)
    assert not same_weights(first, start.build(config("train.seed=1"), CLASSES))
    assert first.config.num_classes == CLASSES


def test_backend_and_recompute_are_those_of_the_configuration(config):
    model = start.build(config("train.backend=reference", "train.recompute=mlp"), CLASSES)
    assert {layer._backend for layer in model.layers} == {"reference"}
    assert model.execution.recompute == "mlp"


def test_image_vit_is_taken_the_official_way(config, tmp_path):
    shapes = vit_shapes(64, 128, 4, (16, 16), 1 + 3 * 3)
    vit = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_file(vit, tmp_path / "vit.safetensors")
    model = start.build(config(f"init.vit={tmp_path / 'vit.safetensors'}"), CLASSES)
    expected = checkpoint.from_vit(vit, model.config)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


ORDER = 'model.update_order=["spectrogram", "rgb"]'


@pytest.mark.parametrize("order", [(), (ORDER,)])
def test_ast_starts_the_spectrogram_and_an_image_vit_the_rest(config, tmp_path, order):
    """An AST has 2 tokens beside its patches, here 2 x 4 along (mel, time), and one channel."""
    shapes = vit_shapes(64, 128, 4, (16, 16), 1 + 2 * 2)
    vit = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_file(vit, tmp_path / "vit.safetensors")
    ast = {name: torch.randn(shape) for name, shape in shapes.items()}
    ast |= {
        "pos_embed": torch.randn(1, 2 + 12 * 4, 64),
        "dist_token": torch.randn(1, 1, 64),
        "patch_embed.proj.weight": torch.randn(64, 1, 16, 16),
    }
    torch.save({f"module.v.{name}": tensor for name, tensor in ast.items()}, tmp_path / "ast.pth")
    files = [f"init.vit={tmp_path / 'vit.safetensors'}", f"init.ast={tmp_path / 'ast.pth'}"]
    both, image, sound, fresh = (
        start.build(config(*order, *given), CLASSES).state_dict()
        for given in (files, files[:1], files[1:], [])
    )
    for name, tensor in both.items():
        assert torch.equal(tensor, (sound if ".spectrogram." in name else image)[name]), name
    for name, tensor in sound.items():
        new = ".spectrogram." in name or name.startswith("norm.")
        assert torch.equal(tensor, fresh[name]) != new or name.startswith("head."), name
    block = sound["blocks.0.spectrogram.mlp.fc1.weight"]
    assert torch.equal(block, ast["blocks.0.mlp.fc1.weight"])


def test_checkpoint_of_another_size_and_other_classes(config, tmp_path):
    """Positions are resized, the classifier stays zero, all else is taken over."""
    saved = start.build(config("train.seed=1"), 7)
    nn.init.normal_(saved.head.weight)
    saved.save_pretrained(tmp_path / "saved")
    changes = ("model.input_size.rgb=[4, 32, 32]", f"init.checkpoint={tmp_path / 'saved'}")
    model = start.build(config(*changes), CLASSES)
    resized = checkpoint.resize_position_embeddings(saved.state_dict(), saved.config, model.config)
    for name, tensor in model.state_dict().items():
        expected = torch.zeros_like(tensor) if name.startswith("head.") else resized[name]
        assert torch.equal(tensor, expected), name


def test_checkpoint_for_the_same_classes_keeps_its_classifier(config, tmp_path):
    saved = start.build(config("train.seed=1"), CLASSES)
    nn.init.normal_(saved.head.weight)
    saved.save_pretrained(tmp_path / "saved")
    model = start.build(config(f"init.checkpoint={tmp_path / 'saved'}"), CLASSES)
    assert same_weights(model, saved)


def test_official_checkpoint_starts_a_run(config, tmp_path):
    changes = (
        "model.input_size.rgb=[2, 224, 224]",
        "model.input_size.spectrogram=[64, 128]",
    )
    saved = start.build(config("train.seed=1", *changes), CLASSES)
    params = checkpoint.torch_to_scenic(saved.state_dict(), saved.config)
    checkpoint.save_scenic(params, tmp_path / "official.checkpoint")
    path = f"init.checkpoint={tmp_path / 'official.checkpoint'}"
    assert same_weights(start.build(config(*changes, path), CLASSES), saved)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("init.checkpoint=none", r"init\.checkpoint must exist, got .*none"),
        ("init.vit=none.npz", r"none\.npz"),
        ("model.num_classes=4", r"must be the number of labels, 3, got 4"),
    ],
)
def test_what_cannot_be_loaded_is_named(config, override, message):
    with pytest.raises((InputError, OSError), match=message):
        start.build(config(override), CLASSES)


def test_checkpoint_of_another_model_is_refused_by_name(config, tmp_path):
    start.build(config("model.n_bottlenecks=4"), CLASSES).save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match=r"init\.checkpoint does not fit .*bottleneck_tokens"):
        start.build(config(f"init.checkpoint={tmp_path / 'saved'}"), CLASSES)


ALONE = {"rgb": 'model.modalities=["rgb"]', "spectrogram": 'model.modalities=["spectrogram"]'}


@pytest.fixture
def towers(config, tmp_path):
    """Models of one modality each: their state dicts, and the overrides that name their folders."""
    states, overrides = {}, []
    for seed, (modality, alone) in enumerate(ALONE.items(), 1):
        model = start.build(config(f"train.seed={seed}", alone), CLASSES)
        nn.init.normal_(model.norm.weight)
        nn.init.normal_(model.head.weight)
        model.save_pretrained(tmp_path / modality)
        states[modality] = model.state_dict()
        overrides.append(f"init.towers.{modality}={tmp_path / modality}")
    return states, overrides


def test_towers_that_were_trained_apart_start_one_model(config, towers):
    states, overrides = towers
    model, fresh = (start.build(config(*given), CLASSES) for given in (overrides, ()))
    for name, tensor in model.state_dict().items():
        if name == "bottleneck_tokens" or name.startswith("head."):
            expected = fresh.state_dict()[name]
        else:
            expected = states["spectrogram" if ".spectrogram." in name else "rgb"][name]
        assert torch.equal(tensor, expected), name


def test_the_last_norm_is_that_of_the_tower_named_first(config, towers):
    states, overrides = towers
    model = start.build(config(*reversed(overrides)), CLASSES)
    assert torch.equal(model.norm.weight, states["spectrogram"]["norm.weight"])


def test_a_tower_alone_leaves_the_other_fresh(config, towers):
    states, overrides = towers
    model, fresh = (start.build(config(*given), CLASSES) for given in (overrides[:1], ()))
    name = "blocks.3.{}.mlp.fc1.weight"
    for modality, expected in (("rgb", states["rgb"]), ("spectrogram", fresh.state_dict())):
        got = model.state_dict()[name.format(modality)]
        assert torch.equal(got, expected[name.format(modality)])


def test_a_tower_is_taken_from_a_model_of_several(config, tmp_path):
    whole = start.build(config("train.seed=1", "model.n_bottlenecks=2"), CLASSES)
    whole.save_pretrained(tmp_path / "whole")
    model = start.build(config(f"init.towers.spectrogram={tmp_path / 'whole'}"), CLASSES)
    fresh = start.build(config(), CLASSES).state_dict()
    for name, tensor in model.state_dict().items():
        taken = ".spectrogram." in name or name.startswith("norm.")
        assert torch.equal(tensor, (whole.state_dict() if taken else fresh)[name]), name


def test_towers_of_a_shared_encoder(config, towers, tmp_path):
    """It has one block a layer: that of the first tower. As a tower it gives its own block."""
    states, overrides = towers
    shared = start.build(config("model.share_encoder=true", *overrides), CLASSES)
    weights = shared.state_dict()
    block = "blocks.1.{}.attn.qkv.weight"
    assert torch.equal(weights[block.format("shared")], states["rgb"][block.format("rgb")])
    position = "embed.spectrogram.pos_embed"
    assert torch.equal(weights[position], states["spectrogram"][position])
    shared.save_pretrained(tmp_path / "shared")
    own = start.build(config(f"init.towers.spectrogram={tmp_path / 'shared'}"), CLASSES)
    got = own.state_dict()[block.format("spectrogram")]
    assert torch.equal(got, weights[block.format("shared")])


def test_positions_of_a_tower_are_resized(config, towers, tmp_path):
    states, overrides = towers
    model = start.build(config("model.input_size.rgb=[4, 32, 32]", overrides[0]), CLASSES)
    small = config(ALONE["rgb"]).model.mbt(CLASSES)
    resized = checkpoint.resize_position_embeddings(states["rgb"], small, model.config)
    assert torch.equal(model.state_dict()["embed.rgb.pos_embed"], resized["embed.rgb.pos_embed"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["init.towers.rgb=none"], r"init\.towers\.rgb must exist, got .*none"),
        (["init.towers.touch={}/rgb"], r"init\.towers\.touch must be of model\.modalities"),
        (["init.towers.rgb={}/spectrogram"], r"must be a model of rgb, got one of spectrogram"),
        (["init.towers.rgb={}/rgb", "model.num_heads=2"], r"init\.towers\.rgb must have 2 heads"),
        (["init.towers.rgb={}/rgb", "model.num_layers=3"], r"rgb .* unexpected blocks\.3\.rgb"),
        (["init.towers.rgb={}/rgb", "model.mlp_dim=64"], r"does not fit \[model\]: misshapen"),
    ],
)
def test_a_tower_that_does_not_fit_is_named(config, towers, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        start.build(config(*(change.format(tmp_path) for change in changes)), CLASSES)


def test_an_empty_path_takes_a_tower_of_the_recipe_away(config):
    text = f'{TINY}[init.towers]\nrgb = "runs/rgb"\n'
    configured = config("init.towers.rgb=", text=text)
    assert configured == config()
    assert same_weights(start.build(configured, CLASSES), start.build(config(), CLASSES))


def test_towers_of_a_model_with_an_order_of_updates(config, tmp_path):
    """The order is of the modalities together; a tower alone has none."""
    whole = start.build(config("train.seed=1", ORDER), CLASSES)
    whole.save_pretrained(tmp_path / "whole")
    paths = [f"init.towers.{modality}={tmp_path / 'whole'}" for modality in ALONE]
    plain, fresh = start.build(config(*paths), CLASSES), start.build(config(ORDER), CLASSES)
    again = start.build(config(ORDER, *paths), CLASSES)
    assert again.config == whole.config
    for model in (plain, again):
        for name, tensor in model.state_dict().items():
            kept = name == "bottleneck_tokens" or name.startswith("head.")
            assert torch.equal(tensor, (fresh if kept else whole).state_dict()[name]), name


def test_paths_of_towers_start_from_the_recipe(config, tmp_path):
    text = f'{TINY}[init.towers]\nrgb = "runs/rgb"\n'
    configured = config(text=text)
    assert configured.init.towers == {"rgb": str(tmp_path / "runs" / "rgb")}
    assert config(text=configured.to_toml()) == configured
    assert "towers" not in config().to_toml()


def test_clip_transform_has_the_model_sizes_and_the_options_of_the_data(config):
    configured = config("data.stride=2", "data.mean=1.5", "data.std=2.5", "data.window=hann")
    model = start.build(configured, CLASSES)
    transform = start.clip_transform(configured, model.config)
    assert (transform.rgb, transform.spectrogram) == ((2, 32, 32), (64, 32))
    assert (transform.stride, transform.mean, transform.std) == (2, 1.5, 2.5)
    assert transform.window == "hann"


def test_modality_that_no_file_has_is_named(config):
    sizes = ("model.input_size.touch=[64, 32]", "model.patch_size.touch=[16, 16]")
    configured = config('model.modalities=["rgb", "touch"]', *sizes)
    with pytest.raises(InputError, match=r"model\.modalities must be of .*, got 'touch'"):
        start.clip_transform(configured, configured.model.mbt(CLASSES))


FUSED = """
[model]
fusion_layer = 1
n_bottlenecks = 2
[model.fuse]
rgb = "hf:image"
spectrogram = "hf:sound"
[model.input_size]
rgb = [2, 32, 32]
spectrogram = [64, 32]
[train]
task = "single"
steps = 2
batch_size = 2
lr = 0.5
"""
SIZES = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96,
}  # fmt: skip


@pytest.fixture
def encoders(tmp_path, monkeypatch):
    """Directories of a ViT, a VideoMAE and an AST with random weights, as Hugging Face saves."""
    # transformers would take our folder kernels/ for a package of that name
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path).resolve() != ROOT])
    transformers = pytest.importorskip("transformers", reason="saves and loads the encoders")
    made = {
        "image": transformers.ViTModel(transformers.ViTConfig(image_size=32, **SIZES)),
        "video": transformers.VideoMAEModel(
            transformers.VideoMAEConfig(image_size=32, num_frames=2, **SIZES)
        ),
        "sound": transformers.ASTModel(
            transformers.ASTConfig(max_length=64, num_mel_bins=32, **SIZES)
        ),
    }
    for name, encoder in made.items():
        encoder.save_pretrained(tmp_path / name)
    return made


def test_fused_pair_has_the_logits_of_an_mbt(config, encoders):
    model = start.build(config(text=FUSED), CLASSES)
    assert isinstance(model, FusedClassifier)
    assert torch.equal(model(inputs()), torch.zeros(2, CLASSES))
    for head in model.head.values():
        nn.init.normal_(head.weight)
    logits = model.forward_modalities(inputs())
    assert {m: tuple(value.shape) for m, value in logits.items()} == {
        "rgb": (2, CLASSES),
        "spectrogram": (2, CLASSES),
    }
    assert torch.equal(model(inputs()), torch.stack(list(logits.values())).mean(dim=0))


def test_weights_of_the_fused_encoders_are_the_pretrained_ones(config, encoders):
    towers = start.build(config(text=FUSED), CLASSES).fused.towers
    for modality, name in (("rgb", "image"), ("spectrogram", "sound")):
        pretrained = encoders[name].state_dict()
        for key, tensor in towers[modality].state_dict().items():
            assert torch.equal(tensor, pretrained[key]), key


def test_late_fusion_of_one_frame_gives_the_encoders_own_features(config, encoders):
    late = config("model.fusion_layer=2", "model.input_size.rgb=[1, 32, 32]", text=FUSED)
    model = start.build(late, CLASSES).eval()
    for head in model.head.values():
        nn.init.normal_(head.weight)
    clip = inputs(frames=1)
    hidden = encoders["image"].eval()(clip["rgb"][:, :, 0]).last_hidden_state[:, 0]
    sound = encoders["sound"].eval()(clip["spectrogram"]).last_hidden_state[:, :2].mean(dim=1)
    logits = model.forward_modalities(clip)
    assert torch.equal(logits["rgb"], model.head["rgb"](hidden))
    assert torch.equal(logits["spectrogram"], model.head["spectrogram"](sound))


def test_frames_differ_by_their_embedding_alone(config, encoders):
    """A still is the same whatever the order of its frames, until their embeddings are trained."""
    model = start.build(config(text=FUSED), CLASSES).eval()
    for head in model.head.values():
        nn.init.normal_(head.weight)
    clip = inputs()
    swapped = {**clip, "rgb": clip["rgb"].flip(2)}
    exact = model.double()
    doubled = [{m: x.double() for m, x in c.items()} for c in (clip, swapped)]
    assert_close_to_exact(exact(doubled[1]), exact(doubled[0]), exact(doubled[0]))
    nn.init.normal_(model.frame_embed["rgb"])
    assert not torch.allclose(exact(doubled[1]), exact(doubled[0]))


def test_absent_modality_of_a_fused_pair_is_left_out(config, encoders):
    model = start.build(config(text=FUSED), CLASSES).eval().double()
    for head in model.head.values():
        nn.init.normal_(head.weight)
    clip = {m: x.double() for m, x in inputs().items()}
    lengths = {"spectrogram": torch.tensor([9, 0], dtype=torch.int32)}
    both, alone = model(clip, lengths), model({"rgb": clip["rgb"]})
    exact = model(clip)
    assert_close_to_exact(both[0], exact[0], exact[0])
    assert_close_to_exact(both[1], alone[1], alone[1])


def test_video_encoder_reads_all_frames_at_once(config, encoders):
    text = FUSED.replace("hf:image", "hf:video")
    model = start.build(config("model.fusion_layer=2", text=text), CLASSES).eval()
    nn.init.normal_(model.head["rgb"].weight)
    clip = {"rgb": inputs()["rgb"]}
    tokens = encoders["video"].eval()(clip["rgb"].transpose(1, 2)).last_hidden_state
    assert not model.frame_embed
    assert model.n_tokens["rgb"] == tokens.shape[1]
    assert torch.equal(model(clip), model.head["rgb"](tokens.mean(dim=1)))


class Timm(types.ModuleType):
    """As much of timm as is asked for: it notes how, and makes small encoders of its kind."""

    def __init__(self):
        super().__init__("timm")
        self.calls = []

    def create_model(self, name, **options):
        self.calls.append((name, options))
        tower = TimmViT()
        tower.head = nn.Identity()
        return tower


def test_encoders_of_timm_are_made_for_the_size_of_the_input(config, tmp_path, monkeypatch):
    timm = Timm()
    monkeypatch.setitem(sys.modules, "timm", timm)
    text = FUSED.replace("hf:image", "timm:vit").replace("hf:sound", "timm:ast")
    sizes = ("model.input_size.rgb=[2, 12, 8]", "model.input_size.spectrogram=[12, 8]")
    model = start.build(config(*sizes, text=text), CLASSES).eval()
    assert timm.calls == [
        (name, {"num_classes": 0, "img_size": (12, 8), "pretrained": True})
        for name in ("vit", "ast")
    ]
    for head in model.head.values():
        nn.init.normal_(head.weight)
    clip = {"rgb": torch.randn(2, 3, 2, 12, 8), "spectrogram": torch.randn(2, 12, 8)}
    save_model(tmp_path / "saved", model)
    loaded = load_model(tmp_path / "saved").eval()
    assert [options.get("pretrained", False) for _, options in timm.calls[2:]] == [False, False]
    assert torch.equal(loaded(clip), model(clip))


def test_library_that_is_not_installed_is_named(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    text = FUSED.replace("hf:image", "timm:vit")
    with pytest.raises(InputError, match=r"encoder 'timm:vit' needs the package 'timm'"):
        start.build(config(text=text), CLASSES)


def test_input_that_does_not_fit_its_encoder_is_named(config, encoders):
    size, text = "model.input_size.rgb=[2, 48, 48]", FUSED.replace("hf:image", "hf:video")
    with pytest.raises(InputError, match=r"model\.fuse: input_size\.rgb must fit its encoder"):
        start.build(config(size, text=text), CLASSES)


def test_positions_are_interpolated_to_the_size_of_the_input(config, encoders):
    sizes = ("model.input_size.rgb=[1, 48, 48]", "model.input_size.spectrogram=[96, 32]")
    model = start.build(config("model.fusion_layer=2", *sizes, text=FUSED), CLASSES).eval()
    nn.init.normal_(model.head["rgb"].weight)
    clip = inputs(frames=1, size=48, time=96)
    hidden = encoders["image"].eval()(clip["rgb"][:, :, 0], interpolate_pos_encoding=True)
    logits = model.forward_modalities(clip)
    assert torch.equal(logits["rgb"], model.head["rgb"](hidden.last_hidden_state[:, 0]))


def test_encoder_that_cannot_be_loaded_is_named(config, encoders, tmp_path):
    (tmp_path / "image" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"the encoder 'hf:.*image' cannot be loaded"):
        start.build(config(text=FUSED), CLASSES)


def test_every_parameter_of_a_fused_pair_is_trained(config, encoders):
    model = start.build(config(text=FUSED), CLASSES)
    for head in model.head.values():
        nn.init.normal_(head.weight)
    sum(value.sum() for value in model.forward_modalities(inputs()).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_fused_pair_is_saved_and_loaded_without_its_encoders_directories(
    config, encoders, tmp_path
):
    model = start.build(config(text=FUSED), CLASSES).eval()
    nn.init.normal_(model.head["rgb"].weight)
    save_model(tmp_path / "saved", model)
    for name in encoders:
        (tmp_path / name).rename(tmp_path / f"gone-{name}")
    loaded = load_model(tmp_path / "saved").eval()
    assert loaded.config == model.config
    assert same_weights(loaded, model)
    assert torch.equal(loaded(inputs()), model(inputs()))


def test_fused_pair_is_planned_for_a_cluster(config, encoders):
    configured = config("train.batch_size=8", text=FUSED).with_num_classes(CLASSES)
    plan = make_plan(configured, Hosts(2, 2), DEFAULT)
    model = start.build(configured, CLASSES)
    work, steps = plan.predictor.work, plan.here().steps
    assert work.parameters == sum(p.numel() for p in model.parameters())
    assert work.both == 3 * work.forward > 0
    assert steps["ddp"].clips == steps["fsdp"].clips == 2
    assert steps["modality"] is None
    assert "activations" not in steps["ddp"].memory
    assert "for an MBT whose modalities" in ways(plan)
