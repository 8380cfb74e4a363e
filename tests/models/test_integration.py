"""What trainers and loaders do to a model: none of it is ignored, and none gives other numbers."""

import pytest
import torch
from model_cases import FUSIONS, int32, random_inputs, tiny
from torch import nn

from mbt_fast import bottleneck_attention, create_model
from mbt_fast.layers import Attention, FusionLayer, StreamEmbedding
from mbt_fast.testing import assert_close_to_exact


def with_norms_in(dtype, model):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.to(dtype)
    return model


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("fusion", ["bottleneck", "vanilla"])
@pytest.mark.parametrize("listens", [False, True], ids=["", "hooks"])
def test_norms_may_stay_in_float32_beside_bfloat16(mode, fusion, listens):
    """The dtype of the inputs was compared with that of the norm."""
    model = tiny(fusion=fusion).train(mode == "train")
    inputs = {m: x.bfloat16() for m, x in random_inputs().items()}
    for layer in model.layers if listens else ():
        layer.block_of("rgb").register_forward_hook(lambda *call: None)
    exact = model.bfloat16().double()({m: x.double() for m, x in inputs.items()})
    actual = with_norms_in(torch.float32, model.bfloat16())(inputs)
    actual.sum().backward()
    assert model.norm.weight.grad.dtype == torch.float32
    eager = with_norms_in(torch.bfloat16, model).set_backend("sdpa")(inputs)
    assert actual.dtype == torch.bfloat16
    assert_close_to_exact(actual, eager, exact)


def materialised(make):
    """Built without memory, then given some, which holds anything."""
    with torch.device("meta"):
        module = make()
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        nn.init.constant_(parameter, float("nan"))
    return module


def alike(actual, expected):
    """Whether two samples of n numbers have one spread: the ratio's standard error is n ** -0.5."""
    ratio = (actual.std() / expected.std()).log().abs()
    return ratio < 6 * expected.numel() ** -0.5


WAYS = {
    "model": lambda model: model.reset_parameters(),
    "every module": lambda model: model.apply(
        lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None
    ),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("fusion", FUSIONS.values(), ids=FUSIONS.keys())
def test_a_model_from_the_meta_device_had_no_reset_parameters(fusion, way):
    """Drawn anew, every tensor has the spread that a new model's has."""
    model = materialised(lambda: create_model("mbt_tiny", **fusion))
    way(model)
    actual, expected = model.state_dict(), create_model("mbt_tiny", **fusion).state_dict()
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].isfinite().all(), name
        if value.std() == 0 or value.numel() == 1:
            assert torch.equal(actual[name], value), name
        else:
            assert alike(actual[name], value), name


@pytest.mark.parametrize("kind", [FusionLayer, StreamEmbedding, Attention])
def test_a_part_resets_itself(kind):
    model = materialised(lambda: create_model("mbt_tiny"))
    part = next(module for module in model.modules() if isinstance(module, kind))
    part.reset_parameters()
    assert all(p.isfinite().all() for p in part.parameters())


def test_resetting_gives_the_numbers_of_the_seed():
    """So that ranks which draw the same seed have the same weights."""
    states = []
    for make in (lambda: create_model("mbt_tiny"), lambda: materialised(make_tiny)):
        model = make()
        torch.manual_seed(5)
        model.reset_parameters()
        states.append(model.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


def make_tiny():
    return create_model("mbt_tiny")


def test_lengths_of_int64_were_refused():
    """It is what ``torch.tensor`` makes of a list. On the CPU values are checked."""
    model, inputs = tiny(), random_inputs()
    lengths = {"rgb": int32(9, 0, 4)}
    long = {m: length.long() for m, length in lengths.items()}
    assert torch.equal(model(inputs, long), model(inputs, lengths))
    assert torch.equal(model.capture(inputs, long)(inputs, long), model(inputs, lengths))
    for value in (10, -1, 2**32 + 4):
        with pytest.raises(ValueError, match=rf"in 0\.\.9, the own tokens, got {value}"):
            model(inputs, {"rgb": torch.tensor([9, 0, value])})


def test_lengths_of_int64_do_not_wrap_around_where_they_are_not_read():
    length = torch.tensor([9, 2**32 + 4])
    model, inputs = tiny(num_layers=2, fusion_layer=1), random_inputs(2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    expected = model(inputs, {"rgb": int32(9, 9)})
    torch.testing.assert_close(compiled(inputs, {"rgb": length}), expected)


def test_lengths_of_int64_reach_an_op_as_int32():
    qkv = [torch.randn(2, 9, 3, 4, 16)]
    outs = [bottleneck_attention(qkv, 4, lengths=[n])[0] for n in (int32(3, 0), int32(3, 0).long())]
    assert torch.equal(*outs)


LORA_TARGETS = {"suffixes": ["attn.qkv", "attn.proj"], "pattern": r".*\.attn\.(qkv|proj)"}


@pytest.mark.parametrize("targets", LORA_TARGETS.values(), ids=LORA_TARGETS.keys())
def test_adapters_of_attention_leave_the_patch_stem_alone(targets):
    """Both have a ``proj``: names in a state dict stay what they are, so targets say which."""
    peft = pytest.importorskip("peft", reason="the extra 'examples' is not installed")
    config = peft.LoraConfig(target_modules=targets, r=2)
    adapted = peft.get_peft_model(create_model("mbt_tiny"), config)
    linears = {name.partition(".lora_")[0] for name, _ in adapted.named_parameters()
               if ".lora_" in name}  # fmt: skip
    assert linears == {
        f"base_model.model.blocks.{index}.{m}.attn.{linear}"
        for index in range(4)
        for m in ("rgb", "spectrogram")
        for linear in ("qkv", "proj")
    }


def test_adapters_named_proj_alone_are_refused_at_the_patch_stem():
    peft = pytest.importorskip("peft", reason="the extra 'examples' is not installed")
    config = peft.LoraConfig(target_modules=["qkv", "proj"], r=2)
    with pytest.raises(ValueError, match=r"PatchProjection.* is not supported"):
        peft.get_peft_model(create_model("mbt_tiny"), config)
