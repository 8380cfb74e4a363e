"""``mbt-fast convert``: formats, configs and what is printed."""

import json

import golden
import numpy as np
import pytest
import torch
from convert_cases import SMALL, run
from safetensors.torch import save_file

from mbt_fast.checkpoint import (
    from_vit,
    load_pretrained,
    load_scenic,
    save_pretrained,
    save_scenic,
    scenic_to_torch,
)
from mbt_fast.checkpoint.scenic import scenic_shapes
from mbt_fast.checkpoint.shapes import vit_shapes
from mbt_fast.cli.convert_sources import guess_format
from mbt_fast.cli.main import main
from mbt_fast.errors import CheckpointError, InputError
from mbt_fast.models.registry import config_for

SCENIC_CONFIG = golden.scenic_config(golden.read())
SIZES = {"rgb": [4, 16, 16], "spectrogram": [24, 16]}
SET_SIZES = ("--set", f"input_size={json.dumps(SIZES)}")
DATASET = {"num_frames": 4, "crop_size": 16, "num_spec_frames": 3, "spec_shape": [8, 16]}


def test_scenic_with_its_config_goes_there_and_back(tmp_path, capsys):
    config_file = tmp_path / "config.json"
    config_file.write_text(json.dumps(SCENIC_CONFIG))
    source = golden.CHECKPOINT
    assert run(source, tmp_path / "mbt", "--config", config_file, *SET_SIZES) == 0
    config, state_dict = load_pretrained(tmp_path / "mbt")
    assert config.fusion_layer == SCENIC_CONFIG["fusion_layer"]
    assert config.modalities == ("spectrogram", "rgb")
    params = load_scenic(source)
    assert all(torch.equal(t, state_dict[n]) for n, t in scenic_to_torch(params, config).items())
    count = sum(array.size for array in params.values())
    expected = f"wrote {tmp_path / 'mbt'} (mbt_fast): {count:,} parameters\n"
    assert capsys.readouterr().out == expected

    assert run(tmp_path / "mbt", tmp_path / "back.checkpoint") == 0
    back = load_scenic(tmp_path / "back.checkpoint")
    assert back.keys() == params.keys()
    assert all(np.array_equal(back[path], params[path]) for path in params)


def test_whole_scenic_config_brings_the_input_sizes(tmp_path):
    whole = {
        "model": {k: v for k, v in SCENIC_CONFIG.items() if k != "num_classes"},
        "num_classes": 7,
        "dataset_configs": DATASET,
    }
    (tmp_path / "config.json").write_text(json.dumps(whole))
    run(golden.CHECKPOINT, tmp_path / "mbt", "--config", tmp_path / "config.json")
    assert load_pretrained(tmp_path / "mbt")[0].to_dict()["input_size"] == {
        "spectrogram": SIZES["spectrogram"],
        "rgb": SIZES["rgb"],
    }


def published_config():
    """Laid out as ``configs/audioset/balanced_audioset_base.py``: a head that bottlenecks lack."""
    data = {**DATASET, "num_classes": SCENIC_CONFIG["num_classes"]}
    model = {k: v for k, v in SCENIC_CONFIG.items() if k not in ("num_classes", "classifier")}
    return {"dataset_configs": data, "model": {**model, "classifier": "gap"}}


def test_the_published_config_is_converted_with_the_head_of_the_checkpoint(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(published_config()))
    source = (golden.CHECKPOINT, tmp_path / "mbt", "--config", tmp_path / "config.json")
    run(*source, "--set", "classifier=token")
    config, _ = load_pretrained(tmp_path / "mbt")
    assert config == golden.config_of(golden.read())
    line = config_error(tmp_path, capsys, published_config(), folder="other")
    assert "classifier must be 'token' for weights with cls and clsspectrogram, got 'gap'" in line


def test_official_keys_are_set_before_the_official_config_is_checked(tmp_path):
    content = {**SCENIC_CONFIG, "dataset_configs": DATASET, "num_classes": None}
    content["attention_dropout_rate"] = 0.1
    (tmp_path / "config.json").write_text(json.dumps(content))
    source = (golden.CHECKPOINT, tmp_path / "mbt", "--config", tmp_path / "config.json")
    with pytest.raises(InputError, match="attention_dropout_rate must be 0, got"):
        run(*source, "--set", "num_classes=7")
    run(*source, "--set", "num_classes=7", "--set", "attention_dropout_rate=0")
    assert load_pretrained(tmp_path / "mbt")[0].num_classes == 7
    with pytest.raises(CheckpointError, match=r"bottleneck must be \[1, 4, 24\], got \[1, 5, 24\]"):
        run(
            *source,
            "--set",
            "num_classes=7",
            "--set",
            "attention_dropout_rate=0",
            "--set",
            "n_bottlenecks=4",
        )


def test_scenic_without_config_is_inferred_and_says_what_it_assumed(tmp_path, capsys):
    params = {p: np.zeros(s, np.float32) for p, s in scenic_shapes(SMALL).items()}
    save_scenic(params, tmp_path / "mbtb32")
    run(tmp_path / "mbtb32", tmp_path / "mbt")
    assert load_pretrained(tmp_path / "mbt")[0] == SMALL
    out = capsys.readouterr().out
    assert "input_size of rgb is assumed to be (2, 224, 224)" in out
    assert "fusion_layer is assumed to be 2" in out
    run(tmp_path / "mbtb32", tmp_path / "mbt", "--set", "fusion_layer=1")
    assert load_pretrained(tmp_path / "mbt")[0].fusion_layer == 1
    assert "fusion_layer" not in capsys.readouterr().out


def test_a_registered_model_is_a_config(tmp_path):
    config = config_for("mbt_tiny", n_bottlenecks=5)
    params = {p: np.zeros(s, np.float32) for p, s in scenic_shapes(config).items()}
    save_scenic(params, tmp_path / "tiny.checkpoint")
    source = (tmp_path / "tiny.checkpoint", tmp_path / "mbt", "--model", "mbt_tiny")
    run(*source, "--set", "n_bottlenecks=5")
    assert load_pretrained(tmp_path / "mbt")[0] == config
    with pytest.raises(CheckpointError, match=r"bottleneck must be \[1, 4, 64\], got \[1, 5, 64\]"):
        run(*source)
    with pytest.raises(InputError, match="got 'mbt_huge'"):
        run(*source[:3], "mbt_huge")


def test_what_scenic_weights_leave_open_is_asked_for_or_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"input_size\['rgb'\] must be given"):
        run(golden.CHECKPOINT, tmp_path / "mbt")
    assert run(golden.CHECKPOINT, tmp_path / "mbt", *SET_SIZES) == 0
    flags = (*SET_SIZES, "--set", "fusion=vanilla")
    with pytest.raises(CheckpointError, match="unexpected bottleneck"):
        run(golden.CHECKPOINT, tmp_path / "mbt", *flags)


@pytest.fixture
def vit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = vit_shapes(8, 12, 3, (16, 16), 197) | {"head.weight": (3, 8), "head.bias": (3,)}
    weights = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    save_file(weights, tmp_path / "vit.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SMALL.to_dict()))
    return weights


def test_vit_takes_the_official_way_with_the_options_asked_for(tmp_path, vit):
    source = (tmp_path / "vit.safetensors", tmp_path / "mbt", "--config", tmp_path / "config.json")
    run(*source)
    expected = from_vit(vit, SMALL)
    loaded = load_pretrained(tmp_path / "mbt")[1]
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    run(*source, "--temporal-init", "average", "--restore-head", "--bottleneck-init", "normal")
    loaded = load_pretrained(tmp_path / "mbt")[1]
    expected = from_vit(vit, SMALL, temporal_init="average", restore_head=True)
    different = [n for n, tensor in expected.items() if not torch.equal(loaded[n], tensor)]
    assert different == ["bottleneck_tokens"]


def test_refused_options_are_input_errors(tmp_path, vit):
    source = (tmp_path / "vit.safetensors", tmp_path / "mbt", "--config", tmp_path / "config.json")
    with pytest.raises(InputError, match="n_bottlenecks must be"):
        run(*source, "--set", "n_bottlenecks=6")
    with pytest.raises(InputError, match="no field 'depth'"):
        run(*source, "--set", "depth=6")
    with pytest.raises(InputError, match="--set must be KEY=VALUE, got 'depth'"):
        run(*source, "--set", "depth")
    with pytest.raises(InputError, match="--config or --model must be given"):
        run(*source[:2])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: not a JSON file"):
        run(*source)
    assert not (tmp_path / "mbt").exists()


def test_mbt_fast_source_can_change_its_input_size(tmp_path):
    weights = {p: np.zeros(s, np.float32) for p, s in scenic_shapes(SMALL).items()}
    save_pretrained(tmp_path / "mbt", SMALL, scenic_to_torch(weights, SMALL))
    run(tmp_path / "mbt", tmp_path / "long", "--set", 'input_size={"spectrogram":[64,128]}')
    config, _ = load_pretrained(tmp_path / "long")
    assert config.input_size == {"rgb": (2, 224, 224), "spectrogram": (64, 128)}
    with pytest.raises(InputError, match="must be left out for mbt_fast weights"):
        run(tmp_path / "mbt", tmp_path / "other", "--model", "mbt_base")


@pytest.mark.parametrize(
    ("source", "destination", "message"),
    [
        ("weights.h5", "mbt", "--from must be given"),
        ("weights.checkpoint", "mbt.bin", "--to must be given"),
    ],
)
def test_ambiguous_paths_need_the_flags(tmp_path, source, destination, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / source, tmp_path / destination)


@pytest.mark.parametrize(
    ("name", "source_format"),
    [
        ("a.safetensors", "vit"),
        ("a.npz", "vit"),
        ("a.pth", "vit"),
        ("a.ckpt", "vit"),
        ("a.pth.tar", "vit"),
        ("a.checkpoint", "scenic"),
        ("a.msgpack", "scenic"),
        ("mbtb32_as-500k_rgb-spec", "scenic"),
        ("", "mbt_fast"),
    ],
)
def test_source_format_follows_the_rule_in_help(tmp_path, name, source_format):
    assert guess_format(tmp_path / name) == source_format


def config_error(tmp_path, capsys, content, *flags, folder="mbt"):
    """The line that ``mbt-fast convert`` prints of a config file."""
    capsys.readouterr()
    (tmp_path / "config.json").write_text(json.dumps(content))
    source = str(golden.CHECKPOINT)
    files = [source, str(tmp_path / folder), "--config", str(tmp_path / "config.json")]
    assert main(["convert", *files, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mbt-fast: error: ")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / folder).exists()
    return captured.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold a JSON object, got list"),
        ({"model": 3}, "model must be a mapping, got 3"),
        ({"input_size": 3}, "input_size must be a mapping from modality to size, got 3"),
        ({**SCENIC_CONFIG, "dataset_configs": 3}, "dataset_configs must be a mapping, got 3"),
        (
            {**SCENIC_CONFIG, "dataset_configs": {"num_spec_frames": "8", "spec_shape": [8, 16]}},
            "spec_shape must be an integer and [time, mel], got '8' and [8, 16]",
        ),
        ({**SCENIC_CONFIG, "dropout_rate": None}, "dropout_rate must be a number, got None"),
    ],
)
def test_malformed_configs_are_one_line(tmp_path, capsys, content, message):
    sizes = SET_SIZES if "modality_fusion" in content else ()
    assert message in config_error(tmp_path, capsys, content, *sizes)


@pytest.mark.parametrize("scenic", [False, True])
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("modalities=3", "modalities must be a tuple of names, got 3"),
        ("input_size=3", "input_size must be a mapping from modality to size, got 3"),
        ("patch_size=3", "patch_size must be a mapping from modality to size, got 3"),
        ('input_size={"flow":[1]}', "input_size must name only modalities of the model"),
        ('patch_size={"flow":[1]}', "patch_size must name only modalities of the model"),
        ('input_size={"rgb":3,"spectrogram":[24,16]}', "input_size['rgb'] must be a"),
    ],
)
def test_malformed_overrides_are_one_line(tmp_path, capsys, scenic, flag, message):
    content = {**SCENIC_CONFIG, "dataset_configs": DATASET} if scenic else SMALL.to_dict()
    assert message in config_error(tmp_path, capsys, content, "--set", flag)


def test_a_scenic_config_without_sizes_asks_for_them(tmp_path, capsys):
    line = config_error(tmp_path, capsys, SCENIC_CONFIG)
    hint = 'such as --set \'input_size={"spectrogram":[800,128],"rgb":[32,224,224]}\''
    assert f"the input size of spectrogram and rgb; give it by --set, {hint}" in line
    whole = {**SCENIC_CONFIG, "dataset_configs": {"num_frames": 4, "crop_size": 16}}
    assert "does not tell the input size of spectrogram; " in config_error(tmp_path, capsys, whole)
