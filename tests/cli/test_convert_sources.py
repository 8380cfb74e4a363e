"""``mbt-fast convert`` on weights as people have them: training loops, Hugging Face, orbax."""

import argparse
import json

import numpy as np
import pytest
import torch
from convert_cases import SMALL, run
from safetensors.torch import save_file

from mbt_fast.checkpoint import (
    from_vit,
    load_pretrained,
    save_pretrained,
    save_scenic,
    torch_to_scenic,
)
from mbt_fast.checkpoint.scenic import scenic_shapes
from mbt_fast.checkpoint.shapes import vit_shapes
from mbt_fast.cli.main import main
from mbt_fast.errors import CheckpointError, InputError
from mbt_fast.models.mbt import MBT
from mbt_fast.models.registry import config_for


@pytest.fixture
def vit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = vit_shapes(8, 12, 3, (16, 16), 197) | {"head.weight": (3, 8), "head.bias": (3,)}
    weights = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    save_file(weights, tmp_path / "vit.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SMALL.to_dict()))
    return weights


def training_file(tmp_path, config, **more):
    """What somebody's own loop leaves: the state dict of a compiled ``MBT``, and arguments."""
    model = MBT(config)
    state_dict = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    args = argparse.Namespace(lr=0.1)
    torch.save({"model": state_dict, "args": args, **more}, tmp_path / "last.pth.tar")
    return model.state_dict()


def test_weights_of_an_mbt_from_a_training_loop_need_a_config_only(tmp_path):
    state_dict = training_file(tmp_path, config_for("mbt_tiny"), epoch=3)
    source = (tmp_path / "last.pth.tar", tmp_path / "mbt")
    with pytest.raises(InputError, match="must be given for the weights of an MBT alone"):
        run(*source)
    run(*source, "--model", "mbt_tiny")
    loaded = load_pretrained(tmp_path / "mbt")[1]
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state_dict.items())
    run(*source, "--model", "mbt_tiny", "--from", "mbt_fast")
    with pytest.raises(CheckpointError, match=r"head\.bias must be \[9\], got \[10\]"):
        run(*source, "--model", "mbt_tiny", "--set", "num_classes=9")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtype_is_that_of_the_flag_whatever_is_read(tmp_path, vit, dtype):
    training_file(tmp_path, config_for("mbt_tiny"))
    save_scenic(
        {p: np.zeros(s, np.float32) for p, s in scenic_shapes(SMALL).items()},
        tmp_path / "scenic.checkpoint",
    )
    vit["norm.bias"] = vit["norm.bias"].half()  # several dtypes are one then
    save_file(vit, tmp_path / "vit.safetensors")
    sources = {
        "last.pth.tar": ("--model", "mbt_tiny"),
        "scenic.checkpoint": (),
        "vit.safetensors": ("--config", tmp_path / "config.json"),
    }
    for name, flags in sources.items():
        run(tmp_path / name, tmp_path / "mbt", "--dtype", dtype, *flags)
        _, state_dict = load_pretrained(tmp_path / "mbt")
        assert {t.dtype for t in state_dict.values()} == {getattr(torch, dtype)}, name
    run(tmp_path / "mbt", tmp_path / "back", "--dtype", "float32")
    assert {t.dtype for t in load_pretrained(tmp_path / "back")[1].values()} == {torch.float32}


def test_bfloat16_goes_to_scenic_and_back(tmp_path):
    training_file(tmp_path, config_for("mbt_tiny"))
    flags = ("--model", "mbt_tiny")
    run(tmp_path / "last.pth.tar", tmp_path / "mbt", *flags, "--dtype", "bfloat16")
    run(tmp_path / "mbt", tmp_path / "mbt.msgpack")
    run(tmp_path / "mbt.msgpack", tmp_path / "back", *flags)
    expected, actual = (load_pretrained(tmp_path / name)[1] for name in ("mbt", "back"))
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def hugging_face_directory(folder, weights, **config):
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2, **config}))
    return folder


def hugging_face_vit(weights):
    """A timm-named ViT under the names of transformers 5."""
    parts = {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
             "norm1": "layernorm_before", "norm2": "layernorm_after"}  # fmt: skip
    outside = {"cls_token": "cls_token", "pos_embed": "position_embeddings"}
    outside |= {f"patch_embed.proj.{leaf}": f"patch_embeddings.projection.{leaf}"
                for leaf in ("weight", "bias")}  # fmt: skip
    renamed = {f"embeddings.{new}": weights[old] for old, new in outside.items()}
    for leaf in ("weight", "bias"):
        renamed[f"layernorm.{leaf}"] = weights[f"norm.{leaf}"]
        for layer in range(SMALL.num_layers):
            qkv = weights[f"blocks.{layer}.attn.qkv.{leaf}"].chunk(3)
            for name, tensor in zip("qkv", qkv, strict=True):
                renamed[f"layers.{layer}.attention.{name}_proj.{leaf}"] = tensor.clone()
            for old, new in parts.items():
                renamed[f"layers.{layer}.{new}.{leaf}"] = weights[f"blocks.{layer}.{old}.{leaf}"]
    return renamed


def hugging_face_ast(weights):
    renamed = hugging_face_vit(weights)
    renamed |= {
        "embeddings.distillation_token": torch.zeros(1, 1, 8),
        "embeddings.position_embeddings": torch.randn(1, 2 + 12 * 3, 8),
        "embeddings.patch_embeddings.projection.weight": torch.randn(8, 1, 16, 16),
    }
    return renamed


def test_a_directory_of_hugging_face_is_a_vit(tmp_path, vit):
    folder = hugging_face_directory(tmp_path / "hf", hugging_face_vit(vit), model_type="vit")
    flags = ("--config", tmp_path / "config.json")
    run(folder, tmp_path / "mbt", *flags)
    run(tmp_path / "vit.safetensors", tmp_path / "timm", *flags)
    actual, expected = (load_pretrained(tmp_path / name)[1] for name in ("mbt", "timm"))
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())
    with pytest.raises(InputError, match=r"num_heads must be 2 as in the config of .*hf, got 4"):
        run(folder, tmp_path / "mbt", *flags, "--set", "num_heads=4")


def test_an_ast_starts_spectrograms_alone_or_beside_a_vit(tmp_path, vit, capsys):
    ast = {**vit, "norm.bias": vit["norm.bias"] + 1}
    ast |= {n: t + 1 for n, t in vit.items() if n.startswith("blocks.")}
    sizes = {"max_length": 48, "num_mel_bins": 128, "patch_size": 16}
    sizes |= {
        "time_stride": 16,
        "frequency_stride": 10,
        "model_type": "audio-spectrogram-transformer",
    }
    folder = hugging_face_directory(tmp_path / "ast", hugging_face_ast(ast), **sizes)
    flags = ("--config", tmp_path / "config.json")
    with pytest.raises(InputError, match=r"must be spectrograms .* such as an AST, got rgb"):
        run(folder, tmp_path / "mbt", *flags)
    run(folder, tmp_path / "alone", *flags, "--set", 'modalities=["spectrogram"]')
    assert "left out: the distillation token of the AST" in capsys.readouterr().out
    alone = load_pretrained(tmp_path / "alone")[1]
    assert torch.equal(alone["norm.bias"], ast["norm.bias"])
    run(
        tmp_path / "vit.safetensors",
        tmp_path / "both",
        *flags,
        "--encoder",
        f"spectrogram={folder}",
    )
    both = load_pretrained(tmp_path / "both")[1]
    for name, tensor in both.items():
        of_ast = ".spectrogram." in name
        expected = alone[name] if of_ast else from_vit(vit, SMALL)[name]
        assert torch.equal(tensor, expected), name
    for wrong in ("flow=ast", "spectrogram", "spectrogram="):
        with pytest.raises(InputError, match="--encoder must be MODALITY=PATH"):
            run(tmp_path / "vit.safetensors", tmp_path / "x", *flags, "--encoder", wrong)


@pytest.mark.parametrize("source", ["mbt", "last.pth.tar", "scenic.checkpoint"])
@pytest.mark.parametrize(
    "flag",
    [
        ("--encoder", "spectrogram=ast"),
        ("--restore-head",),
        ("--bottleneck-init", "position"),
        ("--temporal-init", "central_frame"),
    ],
    ids=lambda flag: flag[0],
)
def test_an_encoder_beside_an_mbt_was_ignored(tmp_path, source, flag):
    state_dict = training_file(tmp_path, SMALL)
    save_pretrained(tmp_path / "mbt", SMALL, state_dict)
    save_scenic(torch_to_scenic(state_dict, SMALL), tmp_path / "scenic.checkpoint")
    with pytest.raises(InputError, match=f"^{flag[0]} must be left out unless the source is a ViT"):
        run(tmp_path / source, tmp_path / "out", *flag)
    assert not (tmp_path / "out").exists()


def test_a_gap_checkpoint_without_config_is_named_as_such(tmp_path, capsys):
    config = SMALL.replace(classifier="gap_per_modality")
    params = {p: np.zeros(s, np.float32) for p, s in scenic_shapes(config).items()}
    save_scenic(params, tmp_path / "gap.checkpoint")
    run(tmp_path / "gap.checkpoint", tmp_path / "mbt")
    assert load_pretrained(tmp_path / "mbt")[0] == config
    said = "classifier is assumed to be gap_per_modality, for the checkpoint has no CLS token"
    assert said in capsys.readouterr().out
    run(tmp_path / "gap.checkpoint", tmp_path / "mbt", "--set", "classifier=gap")
    assert load_pretrained(tmp_path / "mbt")[0].classifier == "gap"
    assert "classifier" not in capsys.readouterr().out


def test_an_orbax_directory_is_named_as_such(tmp_path):
    (tmp_path / "step_100" / "default").mkdir(parents=True)
    (tmp_path / "step_100" / "default" / "_METADATA").touch()
    for source_format in ((), ("--from", "scenic")):
        with pytest.raises(CheckpointError, match="an orbax directory, which is not read"):
            run(tmp_path / "step_100", tmp_path / "mbt", *source_format)


def test_no_message_is_about_something_else(tmp_path, capsys):
    torch.save({"encoder.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    assert (
        main(["convert", str(tmp_path / "other.pth"), str(tmp_path / "mbt"), "--model", "mbt_base"])
        == 2
    )
    line = capsys.readouterr().err
    assert "a ViT must have blocks, with the names of timm, Google or Hugging Face, got" in line
    assert "depth" not in line
