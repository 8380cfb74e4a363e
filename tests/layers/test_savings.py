"""What an MBT does not compute: the results are the same, and the work is really left out."""

import pytest
import torch
from model_cases import (
    FUSIONS,
    assert_results_unchanged,
    fusions,
    lengths,
    random_inputs,
    tiny,
)

from mbt_fast import create_model
from mbt_fast.layers import Savings, fusion


@fusions
@lengths
@pytest.mark.parametrize("training", [False, True])
def test_cls_only_changes_no_result(fusion, lengths, training):
    model = tiny(**fusion).train(training)
    assert_results_unchanged(
        model, random_inputs(), lengths, {"cls_only": True}, {"cls_only": False}
    )


@pytest.mark.parametrize("fusion", ["bottleneck", "late"])
def test_cls_only_of_unimodal_layers(fusion):
    """Where the layers run unimodally at test time, and with one modality alone."""
    model = tiny(**FUSIONS[fusion], test_with_bottlenecks=False)
    on, off = {"cls_only": True}, {"cls_only": False}
    assert_results_unchanged(model, random_inputs(), None, on, off)
    assert_results_unchanged(model, {"rgb": random_inputs()["rgb"]}, None, on, off)


@fusions
def test_the_last_layer_returns_the_cls_rows_alone(fusion):
    """All tokens are there for a hook where the saving is off."""
    model, inputs, seen = tiny(**fusion), random_inputs(), []
    model.layers[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    for cls_only in (True, False):
        model.set_savings(cls_only=cls_only)(inputs)
    saved, full = seen
    ends = {"shared": [0, 9]} if "shared" in full else {"rgb": [0], "spectrogram": [0]}
    for name, rows in ends.items():
        assert full[name].shape[1] >= 9
        torch.testing.assert_close(saved[name], full[name][:, rows])


def test_slots_are_not_shared_after_the_last_layer(monkeypatch):
    model, calls = tiny(), []
    end = fusion.add_mlps
    monkeypatch.setattr(fusion, "add_mlps", lambda *a: calls.append(a[3]) or end(*a))
    model.set_savings(cls_only=True)(random_inputs())
    assert calls == [0, 0, 4, 0]  # of four layers: two unimodal, one fused, and the last
    model.set_savings(cls_only=False)(random_inputs())
    assert calls == [0, 0, 4, 0, 0, 0, 4, 4]


def test_dropout_draws_the_same_numbers_with_and_without_savings():
    model, inputs = tiny(dropout=0.3).train(), random_inputs()
    results = []
    for cls_only in (True, False):
        torch.manual_seed(1)
        results.append(model.set_savings(cls_only=cls_only)(inputs))
    assert torch.equal(*results)


class Adapted(torch.nn.Module):
    """A Linear with something added, as adapters do."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x) + x.amax(-1, keepdim=True)


def hooked(linear):
    linear.register_forward_hook(lambda module, args, output: 2 * output)
    return linear


@pytest.mark.parametrize("change", [Adapted, hooked])
@pytest.mark.parametrize("fusion", ["bottleneck", "vanilla", "vanilla, shared"])
def test_a_replaced_projection_is_called(fusion, change):
    """Its weights are not used in its place."""
    model, inputs = tiny(**FUSIONS[fusion]).set_savings(cls_only=True), random_inputs()
    before = model(inputs)
    for block in model.layers[-1].values():
        block.attn.qkv = change(block.attn.qkv)
    after = model(inputs)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, model.set_savings(cls_only=False)(inputs))


def test_a_kernel_without_dense_attention_leaves_few_queries_to_torch():
    layer = tiny().set_backend("triton").layers[-1]  # cannot run here, and would raise
    for block in layer.values():
        block.set_backend("reference")  # of GELU, which it has
    stream = torch.randn(2, 9, 64, dtype=torch.float64)
    out = layer({"rgb": stream}, {}, n_slots=4, rows=[0])
    assert out["rgb"].shape == (2, 1, 64)


def test_savings_are_checked_and_kept():
    model = create_model("mbt_tiny")
    assert model.savings == Savings()
    assert model.set_savings(cls_only=False) is model
    assert model.savings == Savings(cls_only=False)
    for name in ("cls_only", "skip_dropped"):
        with pytest.raises(TypeError, match=f"{name} must be a bool, got 'no'"):
            model.set_savings(**{name: "no"})
    with pytest.raises(ValueError, match="memory must be one of full, reduced, minimal, got 'low'"):
        model.set_savings(memory="low")
    with pytest.raises(TypeError, match="cls"):
        model.set_savings(cls=True)
