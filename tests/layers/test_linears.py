"""The Linears of a layer: by the op where nobody waits for them, else as modules."""

import pytest
import torch
from backends import OwnCalls, needs_cpu_kernels
from model_cases import tiny
from torch import nn

LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def layer_and_streams(backend="cpu"):
    model = tiny().float().set_backend(backend)
    streams = {m: torch.randn(2, 20, model.config.hidden_size) for m in model.config.modalities}
    return model.layers[2], streams


def calls_of_linear(layer, streams, **options):
    with OwnCalls() as own, torch.no_grad():
        outs = layer(streams, {}, n_slots=4, **options)
    return own.names.count("linear_fwd"), outs


@needs_cpu_kernels
def test_all_streams_take_four_calls():
    layer, streams = layer_and_streams()
    assert calls_of_linear(layer, streams)[0] == 4


@pytest.mark.parametrize("name", LINEARS)
@needs_cpu_kernels
def test_a_linear_with_a_hook_is_called_and_the_others_are_not(name):
    layer, streams = layer_and_streams()
    _, expected = calls_of_linear(layer, streams)
    seen = []
    block = layer.block_of(next(iter(streams)))
    block.get_submodule(name).register_forward_hook(lambda *args: seen.append(name))
    count, outs = calls_of_linear(layer, streams)
    assert seen == [name]
    assert count >= 4  # of the other stream, and three of this one unless its MLP is called whole
    for modality, out in outs.items():
        torch.testing.assert_close(out, expected[modality])


class LowRank(nn.Module):
    """An adapter in the place of a Linear."""

    def __init__(self, linear, rank=2):
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)

    def forward(self, x):
        return self.linear(x) + self.up(self.down(x))


@needs_cpu_kernels
def test_gradients_reach_adapters_and_no_frozen_weight():
    """With a replaced projection in one stream, and every weight but the adapter's frozen."""
    grads = []
    for backend in ("cpu", "reference"):
        torch.manual_seed(0)
        layer, streams = layer_and_streams(backend)
        layer.requires_grad_(False)
        block = layer.block_of(next(iter(streams)))
        block.attn.proj = LowRank(block.attn.proj)
        outs = layer(streams, {}, n_slots=4)
        sum(out.square().sum() for out in outs.values()).backward()
        grads.append(block.attn.proj.up.weight.grad)
        frozen = [p for p in layer.parameters() if not p.requires_grad]
        assert frozen
        assert all(p.grad is None for p in frozen)
    torch.testing.assert_close(*grads)
