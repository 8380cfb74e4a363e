"""The files in which an image ViT is published, and those that only pretend to hold one."""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mbt_fast.checkpoint import load_vit
from mbt_fast.checkpoint.shapes import vit_shapes
from mbt_fast.errors import CheckpointError

QUERY = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query"
WIDTH, MLP, DEPTH, PATCH, CLASSES = 8, 12, 2, 4, 3


def vit():
    generator = torch.Generator().manual_seed(0)
    shapes = vit_shapes(WIDTH, MLP, DEPTH, (PATCH, PATCH), 1 + 5 * 5)
    shapes |= {"head.weight": (CLASSES, WIDTH), "head.bias": (CLASSES,)}
    return {n: torch.randn(s, generator=generator) for n, s in shapes.items()}


NAMES = {  # second norm, attention, MLP, position embeddings, prefix
    "release": ("LayerNorm_2", "_1", "_3", "Transformer/posembed_input/pos_embedding", ""),
    "wrapped": (
        "LayerNorm_2", "_1", "_3", "Transformer/posembed_input/pos_embedding", "opt/target/",
    ),
    "big_vision": ("LayerNorm_1", "_0", "_0", "pos_embedding", "params/"),
}  # fmt: skip


def google_arrays(source, names):
    """A timm-named ViT as the arrays of a Google file, transposed by hand."""
    norm2, attention, mlp, pos_embedding, prefix = NAMES[names]
    source = {n: t.numpy() for n, t in source.items()}
    arrays = {
        "cls": source["cls_token"],
        pos_embedding: source["pos_embed"],
        "embedding/kernel": np.einsum("oihw->hwio", source["patch_embed.proj.weight"]),
        "embedding/bias": source["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": source["norm.weight"],
        "Transformer/encoder_norm/bias": source["norm.bias"],
        "head/kernel": source["head.weight"].T,
        "head/bias": source["head.bias"],
    }
    for layer in range(DEPTH):
        block, old = f"Transformer/encoderblock_{layer}", f"blocks.{layer}"
        for new_norm, norm in (("LayerNorm_0", "norm1"), (norm2, "norm2")):
            arrays[f"{block}/{new_norm}/scale"] = source[f"{old}.{norm}.weight"]
            arrays[f"{block}/{new_norm}/bias"] = source[f"{old}.{norm}.bias"]
        mha = f"{block}/MultiHeadDotProductAttention{attention}"
        weights = source[f"{old}.attn.qkv.weight"].reshape(3, 2, WIDTH // 2, WIDTH)
        biases = source[f"{old}.attn.qkv.bias"].reshape(3, 2, WIDTH // 2)
        for index, part in enumerate(("query", "key", "value")):
            arrays[f"{mha}/{part}/kernel"] = np.einsum("hdc->chd", weights[index])
            arrays[f"{mha}/{part}/bias"] = biases[index]
        out = source[f"{old}.attn.proj.weight"].reshape(WIDTH, 2, WIDTH // 2)
        arrays[f"{mha}/out/kernel"] = np.einsum("chd->hdc", out)
        arrays[f"{mha}/out/bias"] = source[f"{old}.attn.proj.bias"]
        for index in (0, 1):
            dense = f"{block}/MlpBlock{mlp}/Dense_{index}"
            arrays[f"{dense}/kernel"] = source[f"{old}.mlp.fc{index + 1}.weight"].T
            arrays[f"{dense}/bias"] = source[f"{old}.mlp.fc{index + 1}.bias"]
    return {prefix + name: array for name, array in arrays.items()}


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


@pytest.mark.parametrize("names", NAMES)
def test_npz_of_each_release_has_timm_names(tmp_path, names):
    np.savez(tmp_path / "vit.npz", **google_arrays(vit(), names))
    assert_equal(load_vit(tmp_path / "vit.npz"), vit())


def test_npz_with_pre_logits_keeps_them_for_from_vit_to_judge(tmp_path):
    arrays = google_arrays(vit(), "release")
    arrays |= {"pre_logits/kernel": np.zeros((WIDTH, 5)), "pre_logits/bias": np.zeros(5)}
    arrays["head/kernel"] = np.zeros((5, CLASSES))
    np.savez(tmp_path / "vit.npz", **arrays)
    loaded = load_vit(tmp_path / "vit.npz")
    assert loaded["pre_logits.fc.weight"].shape == (5, WIDTH)
    assert loaded["head.weight"].shape == (CLASSES, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cls": None}, "missing cls"),
        ({"conv_root/kernel": np.zeros(2)}, "unexpected conv_root/kernel"),
        ({"cls": np.zeros((1, WIDTH))}, r"cls must be \[1, 1, 8\], got \[1, 8\]"),
        ({f"{QUERY}/kernel": np.zeros((WIDTH, 3, 2))}, "must divide its width 8, got 3"),
        ({f"{QUERY}/kernel": np.zeros(WIDTH)}, r"query/kernel must be \[8, 1, 8\], got \[8\]"),
        ({"cls": np.zeros((1, 1, WIDTH), np.int64)}, "cls must be one of float16.*got int64"),
    ],
)
def test_npz_that_is_not_a_plain_vit_is_refused(tmp_path, change, message):
    arrays = {**google_arrays(vit(), "release"), **change}
    np.savez(tmp_path / "vit.npz", **{n: a for n, a in arrays.items() if a is not None})
    with pytest.raises(CheckpointError, match=message):
        load_vit(tmp_path / "vit.npz")


def test_safetensors_and_wrapped_torch_files_load(tmp_path):
    save_file(vit(), tmp_path / "vit.safetensors")
    assert_equal(load_vit(tmp_path / "vit.safetensors"), vit())
    for name, content in {
        "bare.pth": vit(),
        "model.pt": {"model": vit(), "epoch": 3},
        "state_dict.bin": {"state_dict": vit()},
    }.items():
        torch.save(content, tmp_path / name)
        assert_equal(load_vit(tmp_path / name), vit())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_prefix_of_data_parallel_is_taken_off(tmp_path, suffix):
    path = tmp_path / f"vit{suffix}"
    wrapped = {f"module.{name}": tensor for name, tensor in vit().items()}
    save_file(wrapped, path) if suffix == ".safetensors" else torch.save(wrapped, path)
    assert_equal(load_vit(path), vit())


def test_a_prefix_of_some_names_is_left(tmp_path):
    mixed = {**vit(), "module.cls_token": torch.zeros(1, 1, WIDTH)}
    torch.save(mixed, tmp_path / "vit.pth")
    assert_equal(load_vit(tmp_path / "vit.pth"), mixed)


class Payload:
    """Runs a command when a trusting reader unpickles it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".npz"])
def test_pickled_code_is_refused_and_not_run(tmp_path, suffix):
    path, marker = tmp_path / f"vit{suffix}", tmp_path / "executed"
    if suffix == ".npz":
        np.savez(path, cls=np.array([Payload(marker)], dtype=object))
    else:
        torch.save({"model": Payload(marker)}, path)
    with pytest.raises(CheckpointError) as caught:
        load_vit(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": 1}}, {"a": "text"}, torch.zeros(2)])
def test_torch_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="must hold tensors by name"):
        load_vit(tmp_path / "vit.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".bin"])
@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"PK\x03\x04", pickle.dumps([1], protocol=2)[:-2]]
)
def test_malformed_files_are_refused_in_one_line(tmp_path, suffix, content):
    path = tmp_path / f"vit{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_vit(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_suffix_and_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors, .*, got 'vit\.h5'"):
        load_vit(tmp_path / "vit.h5")
    for suffix in (".npz", ".pth", ".safetensors"):
        with pytest.raises(FileNotFoundError):
            load_vit(tmp_path / f"absent{suffix}")
