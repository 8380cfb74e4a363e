"""From an image ViT to an MBT, against an independent statement of the official rules."""

import numpy as np
import pytest
import torch

from mbt_fast import MBTConfig
from mbt_fast.checkpoint import expected_shapes, from_vit
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


def test_central_frame_of_an_even_tubelet_is_the_later_one():
    patches = {"rgb": (2, 4, 4), "spectrogram": (4, 4)}
    inflated = from_vit(vit(), config(patch_size=patches))["embed.rgb.proj.weight"]
    assert torch.equal(inflated[:, :, 1], vit()["patch_embed.proj.weight"])
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
        ({"x": torch.zeros(1)}, {}, "num_layers must be the depth of the ViT = 0, got 2"),
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
