"""Official parameters to a state dict and back, on recordings of the official module."""

import math
from dataclasses import replace

import golden
import numpy as np
import pytest
import torch

from mbt_fast import MBTConfig
from mbt_fast.checkpoint import (
    expected_shapes,
    infer_config,
    load_scenic,
    save_scenic,
    scenic_to_torch,
    torch_to_scenic,
)
from mbt_fast.checkpoint.flax_msgpack import unpack
from mbt_fast.checkpoint.scenic import scenic_shapes
from mbt_fast.errors import CheckpointError
from mbt_fast.models.mbt import MBT

RELEASED = {  # sizes of the released checkpoints
    "input_size": {"rgb": (32, 224, 224), "spectrogram": (800, 128)},
    "patch_size": {"rgb": (2, 16, 16), "spectrogram": (16, 16)},
}


def read(name, prefix="params"):
    record = golden.read(name)
    return golden.config_of(record), golden.group(record, prefix)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        assert actual[name].tobytes() == array.tobytes(), name
        assert actual[name].shape == array.shape, name


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        *((name, "params") for name in golden.NAMES),
        *((name, "grads") for name in golden.NAMES if name != "unimodal_eval"),  # has none
    ],
)
def test_scenic_to_torch_to_scenic_is_exact(name, prefix):
    config, params = read(name, prefix)
    state_dict = scenic_to_torch(params, config)
    assert {n: tuple(t.shape) for n, t in state_dict.items()} == expected_shapes(config)
    assert_same(torch_to_scenic(state_dict, config), params)


@pytest.mark.parametrize("name", golden.NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_to_scenic_to_torch_is_exact(name, dtype):
    config, _ = read(name)
    generator = torch.Generator().manual_seed(0)
    state_dict = {
        n: torch.randn(shape, generator=generator).to(dtype)
        for n, shape in expected_shapes(config).items()
    }
    back = scenic_to_torch(torch_to_scenic(state_dict, config), config)
    assert back.keys() == state_dict.keys()
    for n, tensor in state_dict.items():
        assert back[n].dtype == dtype
        assert torch.equal(back[n], tensor), n


def test_layouts_are_those_of_the_official_module():
    config, params = read("bottleneck")
    state_dict = scenic_to_torch(params, config)
    attention = "Transformer/encoderblock_1_spectrogram/MultiHeadDotProductAttention_0"
    width, head_dim = config.hidden_size, config.head_dim
    qkv = state_dict["blocks.1.spectrogram.attn.qkv.weight"]
    bias = state_dict["blocks.1.spectrogram.attn.qkv.bias"]
    for index, part in enumerate(("query", "key", "value")):
        kernel = params[f"{attention}/{part}/kernel"]
        head, channel, source = 1, 5, 7
        row = index * width + head * head_dim + channel
        assert qkv[row, source] == kernel[source, head, channel]
        assert bias[row] == params[f"{attention}/{part}/bias"][head, channel]
    out = params[f"{attention}/out/kernel"]
    assert state_dict["blocks.1.spectrogram.attn.proj.weight"][3, head_dim + 5] == out[1, 5, 3]
    video, audio = params["embedding/kernel"], params["embedding_spectrogram/kernel"]
    assert state_dict["embed.rgb.proj.weight"][9, 2, 1, 3, 4] == video[1, 3, 4, 2, 9]
    assert state_dict["embed.spectrogram.proj.weight"][9, 2, 3, 4] == audio[3, 4, 2, 9]
    assert torch.equal(
        state_dict["embed.spectrogram.cls_token"], torch.tensor(params["clsspectrogram"])
    )


@pytest.mark.parametrize(
    ("modalities", "tensors", "parameters"),
    [
        (("rgb", "spectrogram"), 397, 175_009_295),
        (("rgb",), 200, 89_051_663),
        (("spectrogram",), 200, 86_360_591),
    ],
)
def test_full_size_has_the_official_count(modalities, tensors, parameters):
    shapes = scenic_shapes(MBTConfig(modalities=modalities, n_bottlenecks=5, **RELEASED))
    assert len(shapes) == tensors
    assert sum(map(math.prod, shapes.values())) == parameters


def test_further_modalities_extend_the_scheme():
    sizes = {"rgb": (2, 8, 8), "depth": (2, 8, 8)}
    patches = {"rgb": (1, 8, 8), "depth": (1, 8, 8)}
    config = MBTConfig(("rgb", "depth"), sizes, patches, num_layers=1, fusion_layer=0)
    paths = scenic_shapes(config)
    assert {"cls", "clsdepth", "embedding_depth/kernel"} <= paths.keys()
    assert "Transformer/encoderblock_0_depth/LayerNorm_0/scale" in paths


def test_an_unused_bottleneck_is_tolerated_only_where_it_is_unused():
    config, params = read("rgb_only")
    extra = {**params, "bottleneck": np.zeros((1, 5, 24), np.float32)}
    assert torch_to_scenic(scenic_to_torch(extra, config), config).keys() == params.keys()
    config, params = read("late")
    for used in ({"fusion": "vanilla"}, {"n_bottlenecks": 0}):
        with pytest.raises(CheckpointError, match=r"unexpected bottleneck$"):
            scenic_to_torch(params, replace(config, **used))
    del params["bottleneck"]
    with pytest.raises(CheckpointError, match=r"missing bottleneck$"):
        scenic_to_torch(params, config)


def test_error_names_every_kind_of_difference_on_one_line():
    config, params = read("bottleneck")
    del params["cls"]
    params["pre_logits/kernel"] = np.zeros((2, 2), np.float32)
    params["output_projection/bias"] = np.zeros(9, np.float32)
    with pytest.raises(CheckpointError) as caught:
        scenic_to_torch(params, config)
    assert str(caught.value) == (
        "the scenic parameters do not fit the config: missing cls; unexpected pre_logits/kernel; "
        "misshapen output_projection/bias must be [7], got [9]"
    )


def test_error_counts_what_it_does_not_show():
    config, params = read("bottleneck")
    with pytest.raises(CheckpointError, match=rf"\.\.\. \({len(params)} in all\)"):
        scenic_to_torch({}, config)


def test_dtypes_that_the_other_side_does_not_have_are_refused():
    config, params = read("bottleneck")
    state_dict = scenic_to_torch(params, config)
    state_dict["head.bias"] = state_dict["head.bias"].int()
    with pytest.raises(CheckpointError, match=r"output_projection/bias must be .*, got int32"):
        torch_to_scenic(state_dict, config)
    params["cls"] = params["cls"].astype(np.int32)
    with pytest.raises(CheckpointError, match=r"cls must be one of float16, .*, got int32"):
        scenic_to_torch(params, config)


def test_bfloat16_goes_to_an_official_file_and_back(tmp_path):
    config, params = read("bottleneck")
    state_dict = {n: t.bfloat16() for n, t in scenic_to_torch(params, config).items()}
    save_scenic(torch_to_scenic(state_dict, config), tmp_path / "bf16.checkpoint")
    back = scenic_to_torch(load_scenic(tmp_path / "bf16.checkpoint"), config)
    assert all(torch.equal(back[name], tensor) for name, tensor in state_dict.items())
    assert {tensor.dtype for tensor in back.values()} == {torch.bfloat16}
    momentum = unpack((tmp_path / "bf16.checkpoint").read_bytes())["optimizer"]["state"]
    assert momentum["param_states"]["cls"]["momentum"].dtype == torch.bfloat16


def test_gradients_of_unused_parameters_are_zero():
    """In late fusion the bottlenecks have none, and torch says so by ``None``."""
    config, _ = read("late")
    model = MBT(config).double().train()
    shapes = {m: model.embedding(m).input_shape for m in config.modalities}
    model({m: torch.ones(1, *shape).double() for m, shape in shapes.items()}).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == [
        "bottleneck_tokens"
    ]
    arrays = torch_to_scenic(gradients, config)
    assert {path: array.shape for path, array in arrays.items()} == scenic_shapes(config)
    assert {array.dtype for array in arrays.values()} == {np.dtype("float64")}
    assert not arrays["bottleneck"].any()
    with pytest.raises(CheckpointError, match="unexpected depth"):
        torch_to_scenic({**gradients, "depth": None}, config)


def test_converted_weights_have_memory_of_their_own():
    config, params = read("bottleneck")
    state_dict = scenic_to_torch(params, config)
    before = params["cls"].copy()
    state_dict["embed.rgb.cls_token"].add_(1)
    assert np.array_equal(params["cls"], before)
    arrays = torch_to_scenic(state_dict, config)
    arrays["cls"] += 1
    assert np.array_equal(state_dict["embed.rgb.cls_token"].numpy(), before + 1)


@pytest.mark.parametrize("name", golden.NAMES)
def test_infer_config_reads_what_shapes_tell(name):
    config, params = read(name)
    inferred, assumptions = infer_config(params, input_size=config.input_size)
    for field in ("hidden_size", "num_layers", "num_heads", "mlp_dim", "num_classes"):
        assert getattr(inferred, field) == getattr(config, field)
    assert set(inferred.modalities) == set(config.modalities)
    assert inferred.n_slots == config.n_slots
    assert inferred.patch_size == config.patch_size
    assert inferred.fusion_layer == 2
    assert any("fusion_layer" in line for line in assumptions) == (len(config.modalities) > 1)
    assert scenic_to_torch(params, inferred).keys() == scenic_to_torch(params, config).keys()


@pytest.mark.parametrize("share_encoder", [False, True])
def test_infer_config_assumes_the_published_sizes(share_encoder):
    config = MBTConfig(n_bottlenecks=5, share_encoder=share_encoder, **RELEASED)
    params = {p: np.broadcast_to(np.float32(0), s) for p, s in scenic_shapes(config).items()}
    inferred, assumptions = infer_config(params)
    assert inferred == config
    assert assumptions == [
        "input_size of rgb is assumed to be (32, 224, 224)",
        "input_size of spectrogram is assumed to be (800, 128)",
        "fusion_layer is assumed to be 8",
    ]


def test_infer_config_asks_for_sizes_that_it_cannot_assume():
    _, params = read("rgb_only")
    with pytest.raises(CheckpointError, match=r"input_size\['rgb'\] must be given"):
        infer_config(params)
    with pytest.raises(CheckpointError, match="must hold embedding/kernel, got none"):
        infer_config({"cls": params["cls"]})


def test_infer_config_merges_what_is_known_and_refuses_unknown_modalities():
    config, params = read("bottleneck")
    sizes = {"spectrogram": (24, 16), "rgb": (4, 16, 16)}
    inferred, _ = infer_config(params, input_size=sizes, patch_size={"rgb": (2, 8, 8)})
    assert inferred.patch_size == config.patch_size
    with pytest.raises(ValueError, match=r"input_size must name only modalities .*, got 'rbg'"):
        infer_config(params, input_size={**sizes, "rbg": (4, 16, 16)})
    with pytest.raises(TypeError, match=r"input_size must be a mapping .*, got 3"):
        infer_config(params, input_size=3)
