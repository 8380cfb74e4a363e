"""Files that training loops leave: wrapped names, arguments beside the tensors, narrow dtypes."""

import argparse
import pathlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mbt_fast import create_model
from mbt_fast.checkpoint import load_pretrained, load_scenic, load_vit, save_pretrained
from mbt_fast.checkpoint.flax_msgpack import pack
from mbt_fast.checkpoint.shapes import cast
from mbt_fast.checkpoint.vit_files import read_named
from mbt_fast.checkpoint.wrappers import unwrapped
from mbt_fast.errors import CheckpointError


def weights():
    return {
        "cls_token": torch.ones(1, 1, 4),
        "blocks.0.norm1.weight": torch.zeros(4),
        "norm.bias": torch.arange(4.0),
    }


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


WRAPPED = {
    "DataParallel": lambda name: f"module.{name}",
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "compiled in DataParallel": lambda name: f"module._orig_mod.{name}",
    "DataParallel compiled": lambda name: f"_orig_mod.module.{name}",
    "Lightning": lambda name: f"model.{name}",
    "Lightning, compiled": lambda name: f"net._orig_mod.{name}",
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name}",
    "a compiled layer": lambda name: name.replace("norm1", "_orig_mod.norm1"),
    "activation checkpointing": lambda name: name.replace(
        "norm1", "_checkpoint_wrapped_module.norm1"
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_names_are_those_inside_of_wrappers(tmp_path, wrapper, suffix):
    wrapped = {WRAPPED[wrapper](name): tensor for name, tensor in weights().items()}
    path = tmp_path / f"vit{suffix}"
    save_file(wrapped, path) if suffix == ".safetensors" else torch.save(wrapped, path)
    assert_same(load_vit(path), weights())


def test_names_are_those_that_torch_itself_wraps(tmp_path):
    module = nn.Sequential(OrderedDict(norm=nn.LayerNorm(4), head=nn.Linear(4, 2)))
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.save(nn.DataParallel(torch.compile(module)).state_dict(), tmp_path / "vit.pt")
    assert_same(load_vit(tmp_path / "vit.pt"), expected)


def test_a_tensor_of_the_loss_was_called_a_vit_without_blocks(tmp_path):
    model = create_model("mbt_tiny")
    inside = {f"net.encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    save_pretrained(tmp_path, model.config, model.state_dict())
    save_file({**inside, "criterion.pos_weight": torch.ones(10)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"the config: unexpected criterion\.pos_weight$"):
        load_pretrained(tmp_path)
    save_file({f"loop.{name}": t for name, t in inside.items()}, tmp_path / "model.safetensors")
    assert_same(load_pretrained(tmp_path)[1], model.state_dict())


def test_averaged_weights_were_called_a_vit_without_blocks(tmp_path):
    model = create_model("mbt_tiny")
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.save(averaged.state_dict(), tmp_path / "average.pt")
    assert_same(read_named(tmp_path / "average.pt"), model.state_dict())


def test_the_classifier_beside_the_vit_of_an_ast_is_part_of_it():
    names = ["v.blocks.0.norm1.weight", "v.cls_token", "mlp_head.0.weight"]
    tensors = {f"module.{name}": torch.zeros(1) for name in names}
    assert list(unwrapped(tensors)) == names


def test_of_two_models_in_one_file_none_is_chosen():
    names = ["student.blocks.0.norm1.weight", "teacher.blocks.0.norm1.weight"]
    assert list(unwrapped({name: torch.zeros(1) for name in names})) == names


def test_two_tensors_of_one_name_are_refused(tmp_path):
    twice = {"a": torch.zeros(1), "_orig_mod.a": torch.ones(1)}
    torch.save(twice, tmp_path / "vit.pt")
    with pytest.raises(CheckpointError, match=r"vit\.pt: the names of tensors must differ .*got a"):
        load_vit(tmp_path / "vit.pt")


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "module"])
@pytest.mark.parametrize("name", ["last.ckpt", "model_best.pth.tar", "weights.pt"])
def test_weights_are_found_where_training_loops_put_them(tmp_path, key, name):
    path = tmp_path / name
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({key: weights(), "epoch": 3, "optimizer": optimizer}, path)
    assert_same(load_vit(path), weights())


def test_a_lightning_checkpoint_is_read(tmp_path):
    content = {
        "epoch": 1,
        "global_step": 20,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict((f"model.{n}", t) for n, t in weights().items()),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1},
    }
    torch.save(content, tmp_path / "last.ckpt")
    assert_same(load_vit(tmp_path / "last.ckpt"), weights())


@pytest.mark.parametrize("zipped", [True, False])
def test_arguments_and_scores_may_stand_beside_the_tensors(tmp_path, zipped):
    args = argparse.Namespace(lr=0.1, output=pathlib.Path("runs"), betas=(0.9, 0.95))
    content = {"model": weights(), "args": args, "best": np.float64(0.5), "epoch": np.int64(3)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert_same(load_vit(tmp_path / "a.pth"), weights())


class Recipe:
    """Some class of somebody's training loop."""


@pytest.mark.parametrize("zipped", [True, False])
def test_another_class_is_named_with_the_way_out(tmp_path, zipped):
    content = {"model": weights(), "recipe": Recipe()}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught:
        load_vit(tmp_path / "a.pth")
    message = str(caught.value)
    assert f"holds objects of {Recipe.__module__}.Recipe beside tensors" in message
    assert "save its state dict alone with torch.save" in message
    assert "\n" not in message


def test_a_whole_model_and_torchscript_are_named_with_the_way_out(tmp_path):
    torch.save(create_model("mbt_tiny"), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"objects of mbt_fast\.config\.MBTConfig, .* in all"):
        load_vit(tmp_path / "model.pt")
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match="a TorchScript archive, which is not read"):
        load_vit(tmp_path / "script.pt")


def test_allowed_classes_are_forgotten_after_the_file(tmp_path):
    torch.save({"model": weights(), "args": argparse.Namespace()}, tmp_path / "a.pth")
    before = torch.serialization.get_safe_globals()
    load_vit(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == set(before)


def write(kind, path):
    content = {"model": weights(), "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)}
    if kind == "torch":
        torch.save(content, path)
    elif kind == "torch before 1.6":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        save_file(weights(), path)
    elif kind == "npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in weights().items()})
    else:
        narrow = {name: tensor.bfloat16() for name, tensor in weights().items()}
        path.write_bytes(pack({"params": narrow, "opt_state": {"0": np.zeros(3, np.float32)}}))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("torch", "a.pth"),
        ("torch before 1.6", "a.pth"),
        ("safetensors", "a.safetensors"),
        ("npz", "a.npz"),
        ("msgpack", "a.checkpoint"),
    ],
)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, kind, name):
    path, rng = tmp_path / name, np.random.default_rng(0)
    write(kind, path)
    whole, refused = path.read_bytes(), []
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.choice([1, 2, 8])):
            damaged[place] = rng.integers(256)
        path.write_bytes(bytes(damaged[: rng.choice([len(whole), rng.integers(len(whole))])]))
        try:
            load_scenic(path) if kind == "msgpack" else load_vit(path)
        except CheckpointError as error:
            refused.append(str(error))
    assert len(refused) > 30
    assert all(message.startswith(f"{path}: ") for message in refused), refused
    assert all(message.isprintable() for message in refused), refused


def test_weights_of_several_dtypes_load_in_the_one_that_is_asked_for(tmp_path):
    model = create_model("mbt_tiny")
    mixed = {
        name: tensor.bfloat16() if "head" not in name else tensor
        for name, tensor in model.state_dict().items()
    }
    save_pretrained(tmp_path, model.config, model.state_dict())
    save_file(mixed, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="all must be bfloat16 like most"):
        load_pretrained(tmp_path)
    _, narrow = load_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in narrow.values()} == {torch.bfloat16}
    assert_same(narrow, {name: tensor.bfloat16() for name, tensor in mixed.items()})


def test_saved_weights_of_a_compiled_model_load(tmp_path):
    model = create_model("mbt_tiny")
    save_pretrained(tmp_path, model.config, model.state_dict())
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file(compiled, tmp_path / "model.safetensors")
    assert_same(load_pretrained(tmp_path)[1], model.state_dict())


@pytest.mark.parametrize(("value", "fits"), [(1e5, False), (float("inf"), True), (6e4, True)])
def test_a_cast_that_would_overflow_is_refused(value, fits):
    tensors = {"a": torch.tensor([value, 1.0]), "b": torch.ones(1)}
    if fits:
        assert cast(tensors, torch.float16)["a"][0] == torch.tensor(value).half()
        return
    with pytest.raises(CheckpointError, match=r"in the range of float16, got more in a$"):
        cast(tensors, torch.float16)


def test_numbers_that_are_not_floating_point_are_not_cast():
    with pytest.raises(CheckpointError, match=r"must be floating point, got step \(int64\)$"):
        cast({"step": torch.tensor(3)}, torch.float32)
