"""Our own format: a directory with a config and its weights."""

import json
import os
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from mbt_fast import MBTConfig
from mbt_fast.checkpoint import (
    expected_shapes,
    load_pretrained,
    resize_position_embeddings,
    save_pretrained,
)
from mbt_fast.errors import CheckpointError
from mbt_fast.models.mbt import MBT
from mbt_fast.models.registry import config_for, create_model

CONFIG = MBTConfig(
    input_size={"rgb": (4, 8, 8), "spectrogram": (20, 8)},
    patch_size={"rgb": (2, 4, 4), "spectrogram": (4, 4)},
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    mlp_dim=12,
    num_classes=3,
    fusion_layer=1,
)


def weights(config=CONFIG, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = expected_shapes(config)
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}


assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)  # names and dtypes too


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path, dtype):
    save_pretrained(tmp_path / "new" / "mbt", CONFIG, weights(dtype=dtype))
    config, state_dict = load_pretrained(tmp_path / "new" / "mbt")
    assert config == CONFIG
    assert_equal(state_dict, weights(dtype=dtype))
    names = sorted(path.name for path in (tmp_path / "new" / "mbt").iterdir())
    assert names == ["config.json", "model.safetensors"]


def test_config_file_is_stamped_and_plain(tmp_path):
    save_pretrained(tmp_path, CONFIG, weights())
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values.pop("format"), values.pop("version")) == ("mbt_fast", 1)
    assert values == CONFIG.to_dict()


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_files_have_the_mode_of_any_new_file(tmp_path):
    save_pretrained(tmp_path / "mbt", CONFIG, weights())
    (tmp_path / "new").touch()
    for path in (tmp_path / "mbt").iterdir():
        assert path.stat().st_mode == (tmp_path / "new").stat().st_mode, path.name


def test_tensors_may_share_memory_or_be_strided(tmp_path):
    state_dict = weights()
    shared = torch.randn(8)
    state_dict |= {"norm.weight": shared, "norm.bias": shared}
    state_dict["head.weight"] = torch.randn(8, 3).T
    save_pretrained(tmp_path, CONFIG, state_dict)
    assert_equal(load_pretrained(tmp_path)[1], state_dict)


def test_overrides_change_the_config(tmp_path):
    save_pretrained(tmp_path, CONFIG, weights())
    config, state_dict = load_pretrained(tmp_path, fusion_layer=2, stochastic_depth=0.3)
    assert (config.fusion_layer, config.stochastic_depth) == (2, 0.3)
    assert_equal(state_dict, weights())
    with pytest.raises(ValueError, match="no field 'depth'"):
        load_pretrained(tmp_path, depth=3)


def test_override_that_the_weights_do_not_fit_is_named(tmp_path):
    save_pretrained(tmp_path, CONFIG, weights())
    with pytest.raises(CheckpointError, match=r"head\.weight must be \[5, 8\], got \[3, 8\]"):
        load_pretrained(tmp_path, num_classes=5)
    with pytest.raises(CheckpointError, match="unexpected bottleneck_tokens"):
        load_pretrained(tmp_path, fusion="vanilla")


def test_new_input_size_resizes_the_positions_of_that_modality(tmp_path):
    save_pretrained(tmp_path, CONFIG, weights())
    config, state_dict = load_pretrained(tmp_path, input_size={"spectrogram": (36, 12)})
    assert config.input_size == {"rgb": (4, 8, 8), "spectrogram": (36, 12)}
    name = "embed.spectrogram.pos_embed"
    old, new = weights()[name], state_dict.pop(name)
    assert new.shape == (1, 1 + 9 * 3, 8)
    assert torch.equal(new[0, 0], old[0, 0])
    old_grid, new_grid = old[0, 1:].view(5, 2, 8), new[0, 1:].view(9, 3, 8)
    assert torch.equal(new_grid[::2, ::2], old_grid)  # every old place is one of the new
    assert torch.equal(new_grid[1::2, ::2], (old_grid[1:] + old_grid[:-1]) / 2)
    assert torch.equal(new_grid[::2, 1], old_grid.mean(1))
    assert_equal(state_dict, {n: t for n, t in weights().items() if n != name})


def test_positions_without_cls_are_resized_too(tmp_path):
    config = CONFIG.replace(classifier="gap")
    save_pretrained(tmp_path, config, weights(config))
    _, state_dict = load_pretrained(tmp_path, input_size={"spectrogram": (36, 8)})
    name = "embed.spectrogram.pos_embed"
    old, new = weights(config)[name].view(5, 2, 8), state_dict[name].view(9, 2, 8)
    assert torch.equal(new[::2], old)
    assert torch.equal(new[1::2], (old[1:] + old[:-1]) / 2)


def test_video_positions_are_linear_along_each_of_three_axes():
    new_config = MBTConfig.from_dict(
        {**CONFIG.to_dict(), "input_size": {"rgb": (10, 20, 12), "spectrogram": (20, 8)}}
    )

    def ramp(grid):
        axes = torch.meshgrid(*(torch.linspace(0, 1, extent) for extent in grid), indexing="ij")
        return torch.stack(axes, dim=-1).flatten(0, -2)

    state_dict = {
        "embed.rgb.pos_embed": torch.cat([torch.full((1, 3), 7.0), ramp((2, 2, 2))])[None]
    }
    resized = resize_position_embeddings({**weights(), **state_dict}, CONFIG, new_config)[
        "embed.rgb.pos_embed"
    ]
    torch.testing.assert_close(resized[0, 1:], ramp((5, 5, 3)))
    assert torch.equal(resized[0, :1], torch.full((1, 3), 7.0))


def test_resize_keeps_the_dtype():
    new_config = MBTConfig.from_dict(
        {**CONFIG.to_dict(), "input_size": {"rgb": (8, 8, 8), "spectrogram": (40, 8)}}
    )
    resized = resize_position_embeddings(weights(dtype=torch.bfloat16), CONFIG, new_config)
    assert {n: tuple(t.shape) for n, t in resized.items()} == expected_shapes(new_config)
    assert {t.dtype for t in resized.values()} == {torch.bfloat16}


def test_resize_refuses_to_turn_a_spectrogram_into_video():
    sizes = {"input_size": {"rgb": (8, 8), "spectrogram": (20, 8)}}
    patches = {"patch_size": {"rgb": (4, 4), "spectrogram": (4, 4)}}
    new_config = MBTConfig.from_dict({**CONFIG.to_dict(), **sizes, **patches})
    with pytest.raises(ValueError, match=r"input_size\['rgb'\] must have 3 sizes"):
        resize_position_embeddings(weights(), CONFIG, new_config)


def test_save_refuses_weights_of_another_model_and_writes_nothing(tmp_path):
    state_dict = weights()
    del state_dict["norm.bias"]
    with pytest.raises(CheckpointError, match=r"missing norm\.bias"):
        save_pretrained(tmp_path / "mbt", CONFIG, state_dict)
    assert not (tmp_path / "mbt").exists()


def test_failed_save_leaves_the_old_weights(tmp_path, monkeypatch):
    save_pretrained(tmp_path, CONFIG, weights())

    def broken(tensors, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(tmp_path, CONFIG, {n: t + 1 for n, t in weights().items()})
    assert_equal(load_pretrained(tmp_path)[1], weights())
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "", "not a config of mbt_fast"),
        ("config.json", "[]", "must hold a JSON object, got list"),
        ("config.json", "{}", "format must be"),
        ("config.json", '{"format": "mbt_fast", "version": 2}', "format must be"),
        ("config.json", '{"format": "mbt_fast", "version": 1, "depth": 3}', "no field 'depth'"),
        ("config.json", '{"format": "mbt_fast", "version": 1, "num_heads": 5}', "num_heads must"),
        ("config.json", '{"format": "mbt_fast", "version": 1}', r"do not fit the config: missing"),
        ("model.safetensors", "", "not a whole safetensors file"),
        ("model.safetensors", "garbage" * 9, "not a whole safetensors file"),
    ],
)
def test_malformed_file_is_named_in_one_line(tmp_path, file, content, message):
    save_pretrained(tmp_path, CONFIG, weights())
    (tmp_path / file).write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_weights_are_refused(tmp_path):
    save_pretrained(tmp_path, CONFIG, weights())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_pretrained(tmp_path)


def test_weights_that_are_not_floating_point_are_named(tmp_path):
    save_pretrained(tmp_path, CONFIG, weights())
    integers = {n: t.long() if n.startswith("head") else t for n, t in weights().items()}
    save_file(integers, tmp_path / "model.safetensors")
    expected = r"float64, got head\.bias \(int64\), head\.weight \(int64\)$"
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_weights_of_several_dtypes_are_refused_both_ways(tmp_path):
    save_pretrained(tmp_path, CONFIG, weights())
    mixed = {n: t.half() if n == "norm.bias" else t for n, t in weights().items()}
    expected = r"all must be float32 like most, got norm\.bias \(float16\)$"
    with pytest.raises(CheckpointError, match=expected):
        save_pretrained(tmp_path, CONFIG, mixed)
    save_file(mixed, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=expected):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_in_float32_beside_narrow_weights_ran_but_could_not_be_saved(tmp_path, dtype):
    mixed = {n: t if "norm" in n else t.to(dtype) for n, t in weights().items()}
    save_pretrained(tmp_path, CONFIG, mixed)
    assert_equal(load_pretrained(tmp_path)[1], mixed)
    with pytest.raises(CheckpointError, match=r"got head\.bias \(float32\)$"):
        save_pretrained(tmp_path, CONFIG, {**mixed, "head.bias": weights()["head.bias"]})


def test_a_directory_in_the_place_of_the_weights_is_named(tmp_path):
    save_pretrained(tmp_path, CONFIG, weights())
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["input_size", "patch_size"])
def test_sizes_are_merged_and_unknown_modalities_are_errors(tmp_path, name):
    tiny = config_for("mbt_tiny")
    smaller = tuple(size // 2 for size in tiny.patch_size["spectrogram"])
    override = {name: {"spectrogram": {"input_size": (128, 32), "patch_size": smaller}[name]}}
    for config in (config_for("mbt_tiny", **override), tiny.replace(**override)):
        assert getattr(config, name) == {**getattr(tiny, name), **override[name]}
    save_pretrained(tmp_path, tiny, weights(tiny))
    unknown = {name: {"spectogram": (64, 32)}}
    for function, source in (
        (config_for, "mbt_tiny"),
        (create_model, "mbt_tiny"),
        (load_pretrained, tmp_path),
        (MBT.from_pretrained, tmp_path),
    ):
        with pytest.raises(ValueError, match=f"{name} must name only .*, got 'spectogram'"):
            function(source, **unknown)
        with pytest.raises(TypeError, match=f"{name} must be a mapping"):
            function(source, **{name: 3})


def test_overrides_may_bring_a_modality_with_its_sizes():
    config = config_for(
        "mbt_tiny",
        modalities=("rgb", "depth"),
        input_size={"depth": (2, 32, 32)},
        patch_size={"depth": (1, 16, 16)},
    )
    assert config.input_size == {"rgb": (2, 32, 32), "depth": (2, 32, 32)}


def test_missing_directory_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_pretrained(tmp_path / "absent")
