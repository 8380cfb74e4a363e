"""Image ViTs: the files they come in, and to an MBT by an independent statement of the rules."""

import os
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mbt_fast import MBTConfig
from mbt_fast.checkpoint import expected_shapes, from_vit, load_vit
from mbt_fast.checkpoint.shapes import vit_shapes
from mbt_fast.errors import CheckpointError

WIDTH, MLP, DEPTH, PATCH, SIDE, CLASSES = 8, 12, 2, 4, 14, 3
CONFIG = {
    "input_size": {"rgb": (6, 56, 56), "spectrogram": (200, 32)},
    "patch_size": {"rgb": (3, 4, 4), "spectrogram": (4, 4)},
    "hidden_size": WIDTH,
    "num_layers": DEPTH,
    "num_heads": 2,
    "mlp_dim": MLP,
    "num_classes": CLASSES,
    "fusion_layer": 1,
    "n_bottlenecks": 5,
}


def config(**changes):
    return MBTConfig(**{**CONFIG, **changes})


def vit(side=SIDE, dtype=torch.float64, **extra):
    generator = torch.Generator().manual_seed(0)
    shapes = vit_shapes(WIDTH, MLP, DEPTH, (PATCH, PATCH), side * side + 1)
    shapes |= {"head.weight": (CLASSES, WIDTH), "head.bias": (CLASSES,)}
    weights = {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}
    return weights | {n: torch.zeros(s) for n, s in extra.items()}


def corner_to_corner(grid, size):
    """Linear interpolation by numpy along one axis after the other: ``[h, w, C]``."""
    for axis, extent in enumerate(size):
        old = np.arange(grid.shape[axis])
        new = np.linspace(0, grid.shape[axis] - 1, extent)
        grid = np.apply_along_axis(lambda line, o=old, n=new: np.interp(n, o, line), axis, grid)
    return torch.from_numpy(grid)


@pytest.mark.parametrize("modalities", [("rgb", "spectrogram"), ("rgb",), ("spectrogram",)])
@pytest.mark.parametrize("share_encoder", [False, True])
def test_result_is_complete_and_keeps_the_dtype(modalities, share_encoder):
    target = config(modalities=modalities, share_encoder=share_encoder)
    state_dict = from_vit(vit(), target)
    assert {n: tuple(t.shape) for n, t in state_dict.items()} == expected_shapes(target)
    assert {t.dtype for t in state_dict.values()} == {torch.float64}
    storages = {t.untyped_storage().data_ptr() for t in state_dict.values()}
    assert len(storages) == len(state_dict)


@pytest.mark.parametrize("share_encoder", [False, True])
def test_every_modality_gets_the_blocks_and_all_share_the_norm(share_encoder):
    source, state_dict = vit(), from_vit(vit(), config(share_encoder=share_encoder))
    copies = [n for n in state_dict if n.startswith("blocks.")]
    assert len(copies) == DEPTH * 12 * (1 if share_encoder else 2)
    for name in copies:
        _, layer, _, part = name.split(".", 3)
        assert torch.equal(state_dict[name], source[f"blocks.{layer}.{part}"]), name
    assert torch.equal(state_dict["norm.weight"], source["norm.weight"])
    assert torch.equal(state_dict["norm.bias"], source["norm.bias"])


def test_cls_token_goes_to_rgb_only_or_to_the_only_modality():
    state_dict = from_vit(vit(), config())
    assert torch.equal(state_dict["embed.rgb.cls_token"], vit()["cls_token"])
    assert not state_dict["embed.spectrogram.cls_token"].any()
    alone = from_vit(vit(), config(modalities=("spectrogram",)))
    assert torch.equal(alone["embed.spectrogram.cls_token"], vit()["cls_token"])


def test_video_positions_of_the_same_grid_are_repeated_over_time():
    source = vit()["pos_embed"]
    positions = from_vit(vit(), config())["embed.rgb.pos_embed"]
    assert torch.equal(positions[:, :1], source[:, :1])
    assert torch.equal(positions[:, 1 : 1 + SIDE**2], source[:, 1:])
    assert torch.equal(positions[:, 1 + SIDE**2 :], source[:, 1:])


def test_video_positions_of_another_grid_are_resized_then_repeated():
    source = vit(side=5)["pos_embed"]
    frame = corner_to_corner(source[0, 1:].unflatten(0, (5, 5)).numpy(), (14, 14)).flatten(0, 1)
    positions = from_vit(vit(side=5), config())["embed.rgb.pos_embed"]
    torch.testing.assert_close(positions, torch.cat([source[0, :1], frame, frame])[None])


def test_spectrogram_positions_go_corner_to_corner():
    source = vit()["pos_embed"]
    grid = source[0, 1:].unflatten(0, (SIDE, SIDE)).numpy()
    positions = from_vit(vit(), config())["embed.spectrogram.pos_embed"]
    expected = torch.cat([source[0, :1], corner_to_corner(grid, (50, 8)).flatten(0, 1)])[None]
    torch.testing.assert_close(positions, expected)
    first, last = 1, -1  # corners: 1 + time * 8 + mel
    assert torch.equal(positions[0, [first, last]], source[0, [1, -1]])


def test_five_bottlenecks_are_cls_and_the_corners_of_the_grid():
    source = vit()["pos_embed"]
    tokens = from_vit(vit(), config())["bottleneck_tokens"]
    assert torch.equal(tokens[0], source[0, [0, 1 + 0, 1 + 13, 1 + 182, 1 + 195]])


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(2, 1, 1), (4, 1, 3), (7, 2, 3), (10, 3, 3), (197, 14, 14)]
)
def test_bottleneck_grid_is_as_square_as_the_official_one(count, rows, columns):
    source = vit()["pos_embed"]
    grid = corner_to_corner(source[0, 1:].unflatten(0, (SIDE, SIDE)).numpy(), (rows, columns))
    tokens = from_vit(vit(), config(n_bottlenecks=count))["bottleneck_tokens"]
    torch.testing.assert_close(tokens, torch.cat([source[0, :1], grid.flatten(0, 1)])[None])


def test_one_bottleneck_is_the_cls_entry():
    tokens = from_vit(vit(), config(n_bottlenecks=1))["bottleneck_tokens"]
    assert torch.equal(tokens, vit()["pos_embed"][:, :1])


def test_bottleneck_count_that_makes_no_grid_is_refused():
    with pytest.raises(ValueError, match='got 6; bottleneck_init="normal" takes any number'):
        from_vit(vit(), config(n_bottlenecks=6))
    tokens = from_vit(vit(), config(n_bottlenecks=6), bottleneck_init="normal")
    assert tokens["bottleneck_tokens"].shape == (1, 6, WIDTH)


@pytest.mark.parametrize("classifier", ["gap", "gap_per_modality"])
def test_a_head_that_pools_takes_nothing_of_cls(classifier):
    target, source = config(classifier=classifier, n_bottlenecks=4), vit()["pos_embed"]
    state_dict = from_vit(vit(), target)
    assert {n: tuple(t.shape) for n, t in state_dict.items()} == expected_shapes(target)
    positions = state_dict["embed.rgb.pos_embed"]
    assert torch.equal(positions, torch.cat([source[:, 1:]] * 2, dim=1))
    corners = source[0, [1 + 0, 1 + 13, 1 + 182, 1 + 195]]
    assert torch.equal(state_dict["bottleneck_tokens"][0], corners)
    with pytest.raises(ValueError, match=r"n_bottlenecks must be a multiple of 2 for .* got 5"):
        from_vit(vit(), target.replace(n_bottlenecks=5))


def test_sampled_frames_take_the_kernel_and_the_grid_for_each_frame():
    target = config(patch_size={"rgb": (1, 4, 4), "spectrogram": (4, 4)}, n_sampled_frames=3)
    state_dict = from_vit(vit(), target)
    assert torch.equal(
        state_dict["embed.rgb.proj.weight"][:, :, 0], vit()["patch_embed.proj.weight"]
    )
    frame, positions = vit()["pos_embed"][:, 1:], state_dict["embed.rgb.pos_embed"][:, 1:]
    assert torch.equal(positions, torch.cat([frame] * 3, dim=1))


def test_normal_bottlenecks_are_drawn_from_the_generator():
    def tokens(seed):
        generator = torch.Generator().manual_seed(seed)
        options = {"bottleneck_init": "normal", "generator": generator}
        return from_vit(vit(), config(n_bottlenecks=512), **options)["bottleneck_tokens"]

    assert torch.equal(tokens(1), tokens(1))
    assert not torch.equal(tokens(1), tokens(2))
    five_sigma = 5 * 0.02 / (2 * tokens(1).numel()) ** 0.5  # of the standard deviation itself
    assert abs(tokens(1).std().item() - 0.02) < five_sigma


def test_patch_kernels():
    kernel = vit()["patch_embed.proj.weight"]
    state_dict = from_vit(vit(), config())
    inflated = state_dict["embed.rgb.proj.weight"]
    assert torch.equal(inflated[:, :, 1], kernel)
    assert not inflated[:, :, [0, 2]].any()
    assert torch.equal(state_dict["embed.spectrogram.proj.weight"], kernel)
    average = from_vit(vit(), config(), temporal_init="average")["embed.rgb.proj.weight"]
    assert torch.equal(average, torch.stack([kernel / 3] * 3, dim=2))
    even = config(patch_size={"rgb": (2, 4, 4), "spectrogram": (4, 4)})
    inflated = from_vit(vit(), even)["embed.rgb.proj.weight"]
    assert torch.equal(inflated[:, :, 1], kernel)  # the later of the two in the middle
    assert not inflated[:, :, 0].any()


def test_head_is_zero_unless_restored():
    state_dict = from_vit(vit(), config(num_classes=9))
    assert state_dict["head.weight"].shape == (9, WIDTH)
    assert not state_dict["head.weight"].any()
    assert not state_dict["head.bias"].any()
    restored = from_vit(vit(), config(), restore_head=True)
    assert torch.equal(restored["head.weight"], vit()["head.weight"])
    with pytest.raises(CheckpointError, match=r"head\.weight must be \[9, 8\], got \[3, 8\]"):
        from_vit(vit(), config(num_classes=9), restore_head=True)


def test_pre_logits_are_dropped_but_not_from_under_a_head():
    source = vit(**{"pre_logits.fc.weight": (WIDTH, WIDTH), "pre_logits.fc.bias": (WIDTH,)})
    assert from_vit(source, config()).keys() == expected_shapes(config()).keys()
    with pytest.raises(CheckpointError, match=r"restore_head .* got pre_logits\.fc\.weight"):
        from_vit(source, config(), restore_head=True)


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        (vit(), {"num_layers": 1}, "num_layers must be the depth of the ViT = 2, got 1"),
        (vit(), {"num_layers": 3}, "num_layers must be the depth of the ViT = 2, got 3"),
        (vit(), {"hidden_size": 16}, "hidden_size must be the width of the ViT = 8, got 16"),
        (vit(), {"mlp_dim": 16}, r"blocks\.0\.mlp\.fc1\.bias must be \[16\], got \[12\]"),
        (vit(dist_token=(1, 1, WIDTH)), {}, "unexpected dist_token"),
        (vit(**{"blocks.0.ls1.gamma": (WIDTH,)}), {}, r"unexpected blocks\.0\.ls1\.gamma"),
        (vit(**{"fc_norm.weight": (WIDTH,)}), {}, r"unexpected fc_norm\.weight"),
        (vit(pos_embed=(1, SIDE**2, WIDTH)), {}, "pos_embed must hold CLS and a square grid"),
        (
            vit(pos_embed=(SIDE**2, WIDTH)),
            {},
            r"pos_embed of the ViT must be \[1, 1 \+ g \* g, C\], got \[196, 8\]",
        ),
        (
            vit(),
            {"patch_size": {"rgb": (1, 8, 8), "spectrogram": (8, 8)}},
            r"patch_embed\.proj\.weight must be \[8, 3, 8, 8\], got \[8, 3, 4, 4\]",
        ),
        (
            vit(),
            {"patch_size": {"rgb": (1, 4, 4), "spectrogram": (8, 8)}},
            r"patch_size must be one \(height, width\) for a ViT, got \[\(4, 4\), \(8, 8\)\]",
        ),
        ({"x": torch.zeros(1)}, {}, "a ViT must have blocks, with the names of .*, got x$"),
    ],
)
def test_what_differs_is_named(source, changes, message):
    with pytest.raises(CheckpointError, match=message):
        from_vit(source, config(**changes))


@pytest.mark.parametrize("option", ["bottleneck_init", "temporal_init"])
def test_unknown_option_is_named(option):
    with pytest.raises(ValueError, match=f"{option} must be one of .*, got 'zeros'"):
        from_vit(vit(), config(), **{option: "zeros"})


@pytest.mark.parametrize(("dtype", "kind"), [(torch.int64, "int64"), (torch.float16, "float16")])
def test_odd_dtypes_are_named(dtype, kind):
    source = vit()
    source["norm.bias"] = source["norm.bias"].to(dtype)
    with pytest.raises(CheckpointError, match=rf"got norm\.bias \({kind}\)$"):
        from_vit(source, config())


# Files.


def small_vit():
    return vit(side=5, dtype=torch.float32)


QUERY = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query"
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


assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)  # names and dtypes too


@pytest.mark.parametrize("names", NAMES)
def test_npz_of_each_release_has_timm_names(tmp_path, names):
    np.savez(tmp_path / "vit.npz", **google_arrays(small_vit(), names))
    assert_equal(load_vit(tmp_path / "vit.npz"), small_vit())


def test_npz_with_pre_logits_keeps_them_for_from_vit_to_judge(tmp_path):
    arrays = google_arrays(small_vit(), "release")
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
    arrays = {**google_arrays(small_vit(), "release"), **change}
    np.savez(tmp_path / "vit.npz", **{n: a for n, a in arrays.items() if a is not None})
    with pytest.raises(CheckpointError, match=message):
        load_vit(tmp_path / "vit.npz")


def test_safetensors_and_wrapped_torch_files_load(tmp_path):
    save_file(small_vit(), tmp_path / "vit.safetensors")
    assert_equal(load_vit(tmp_path / "vit.safetensors"), small_vit())
    for name, content in {
        "bare.pth": small_vit(),
        "model.pt": {"model": small_vit(), "epoch": 3},
        "state_dict.bin": {"state_dict": small_vit()},
    }.items():
        torch.save(content, tmp_path / name)
        assert_equal(load_vit(tmp_path / name), small_vit())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_prefix_of_data_parallel_is_taken_off(tmp_path, suffix):
    path = tmp_path / f"vit{suffix}"
    wrapped = {f"module.{name}": tensor for name, tensor in small_vit().items()}
    save_file(wrapped, path) if suffix == ".safetensors" else torch.save(wrapped, path)
    assert_equal(load_vit(path), small_vit())


def test_a_prefix_of_some_names_is_left(tmp_path):
    mixed = {**small_vit(), "module.cls_token": torch.zeros(1, 1, WIDTH)}
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
