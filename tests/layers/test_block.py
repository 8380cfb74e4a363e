"""A block is a module: what wraps it or listens to it is neither skipped nor wrong."""

import pytest
import torch
from model_cases import (
    TimesTwo,
    assert_all_close_to_exact,
    fusions,
    gradients,
    hooked,
    int32,
    lengths,
    random_inputs,
    tiny,
)
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.checkpoint import checkpoint

from mbt_fast.models.encoders import hf_vit

units = pytest.mark.parametrize("unit", ["Block", "Attention"])
OPTIONS = {"default": {}, "CLS rows": {"cls_only": True}, "masked": {"skip_dropped": False}}


class TimesTwoOfAll(TimesTwo):
    """A wrapper around what takes more than one argument."""

    def forward(self, *args):
        return 2 * self.module(*args)


def watched(module):
    """With a hook that changes nothing, but must be called."""
    module.register_forward_hook(lambda module, args, output: None)
    return module


def change(model, unit, how):
    """Change every block, or the attention in it."""
    for layer in model.layers:
        for name, block in layer.items():
            if unit == "Block":
                layer[name] = how(block)
            else:
                block.attn = how(block.attn)
    return model


def results(model, inputs, lengths, dtype):
    model.to(dtype)
    torch.manual_seed(3)  # of stochastic depth
    logits = model({m: x.to(dtype) for m, x in inputs.items()}, lengths)
    return {"logits": logits} | gradients(logits.square().sum(), dict(model.named_parameters()))


def assert_watching_changes_nothing(model, unit, lengths):
    inputs = random_inputs()
    eager, exact = (results(model, inputs, lengths, d) for d in (torch.float32, torch.float64))
    actual = results(change(model, unit, watched), inputs, lengths, torch.float32)
    assert_all_close_to_exact(actual, eager, exact)


@fusions
@lengths
@units
def test_a_watched_unit_computes_the_same(fusion, lengths, unit):
    assert_watching_changes_nothing(tiny(**fusion), unit, lengths)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("fusion", ["bottleneck", "vanilla"])
@units
def test_a_watched_unit_takes_the_same_options(options, fusion, unit):
    """And draws the same numbers for stochastic depth."""
    model = tiny(fusion=fusion, stochastic_depth=0.5).train().set_execution(**options)
    assert_watching_changes_nothing(model, unit, None)


@pytest.mark.parametrize("how", [hooked, TimesTwoOfAll], ids=["hook", "wrapper"])
@fusions
@units
def test_a_hook_or_wrapper_on_a_unit_was_ignored(how, fusion, unit):
    """Nobody called a ``Block`` or an ``Attention``, so what was around it did nothing."""
    model, inputs = tiny(**fusion), random_inputs()
    before = model(inputs)
    assert not torch.allclose(change(model, unit, how)(inputs), before)


def test_a_hook_keeps_the_block_s_own_slots():
    """The shared mean is not written into what a hook has seen."""
    layer, seen = tiny().layers[-1], {}
    for name, block in layer.items():
        block.register_forward_hook(lambda b, args, out, name=name: seen.update({name: out}))
    streams = {m: torch.randn(2, 9, 64, dtype=torch.float64) for m in layer}
    outs = layer(streams, {}, n_slots=4)
    slots = {m: x[:, -4:] for m, x in seen.items()}
    assert not torch.allclose(*slots.values())
    for m, out in outs.items():
        torch.testing.assert_close(out[:, -4:], sum(slots.values()) / 2)
        assert torch.equal(out[:, :-4], seen[m][:, :-4])


def test_a_block_alone_is_the_layer_of_one_stream():
    layer = tiny().layers[0]
    x, length = torch.randn(3, 9, 64, dtype=torch.float64), int32(9, 4, 0)
    expected = layer({"rgb": x}, {"rgb": length}, n_slots=2)["rgb"]
    torch.testing.assert_close(layer["rgb"](x, length, 2), expected)


def test_global_forward_hooks_see_every_module():
    """Profilers and observers of quantisation listen to all modules: Linears were missing."""
    model, seen = tiny(), set()
    with register_module_forward_hook(lambda module, args, output: seen.add(module)):
        model(random_inputs())
    containers = (nn.ModuleDict, nn.ModuleList)
    layers = set(model.layers)
    missed = [
        name
        for name, module in model.named_modules()
        if module not in seen and (module in layers or not isinstance(module, containers))
    ]
    assert not missed


def test_global_forward_hooks_see_the_projections_of_a_tower():
    linears, seen = [nn.Linear(8, 8) for _ in range(3)], []
    with register_module_forward_hook(lambda module, args, output: seen.append(module)):
        hf_vit._packed(linears, torch.randn(1, 2, 8), 2)
    assert seen == linears


def backward(model, inputs):
    """Gradients of all parameters, by ``backward``: reentrant checkpoints know no other way."""
    model.zero_grad()
    model(inputs).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", list(CheckpointImpl), ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("fusion", ["bottleneck", "vanilla"])
def test_checkpointed_blocks_have_all_gradients(kind, fusion):
    model, inputs = tiny(fusion=fusion).train(), random_inputs()
    expected = backward(model, inputs)
    change(model, "Block", lambda block: checkpoint_wrapper(block, kind))
    actual = {n.replace("_checkpoint_wrapped_module.", ""): g
              for n, g in backward(model, inputs).items()}  # fmt: skip
    torch.testing.assert_close(actual, expected)


class Checkpointed(nn.Module):
    """What several trainers put around a layer."""

    def __init__(self, module, reentrant):
        super().__init__()
        self.module, self.reentrant = module, reentrant

    def forward(self, *args):
        return checkpoint(self.module, *args, use_reentrant=self.reentrant)


@pytest.mark.parametrize("train", [True, False])
def test_a_reentrant_checkpoint_of_a_layer_left_parameters_without_gradient(train):
    """105 of 109, without a word."""
    layer = tiny().train(train).layers[-1]
    streams = {m: torch.randn(2, 9, 64, dtype=torch.float64, requires_grad=True) for m in layer}
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        Checkpointed(layer, True)(streams, {})
    outs = Checkpointed(layer, False)(streams, {})
    sum(x.square().sum() for x in outs.values()).backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_a_reentrant_checkpoint_around_tensors_is_not_refused():
    """The mapping is made inside: every tensor is seen, and every parameter has its gradient."""
    model = tiny().train()

    def run(rgb, spectrogram):
        return model({"rgb": rgb, "spectrogram": spectrogram})

    inputs = [x.requires_grad_() for x in random_inputs().values()]
    checkpoint(run, *inputs, use_reentrant=True).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("lengths", [{}, {"rgb": int32(9, 3)}], ids=["empty", "some"])
def test_a_reentrant_checkpoint_was_refused_for_its_mapping_of_lengths(lengths):
    """All gradients were there."""
    layer = tiny().train().layers[-1]
    streams = [torch.randn(2, 9, 64, dtype=torch.float64, requires_grad=True) for _ in layer]

    def run(*streams_and_lengths):
        *xs, lengths = streams_and_lengths
        return tuple(layer(dict(zip(layer, xs, strict=True)), lengths).values())

    outs = checkpoint(run, *streams, lengths, use_reentrant=True)
    sum(x.square().sum() for x in outs).backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_watched_block_compiles_in_one_graph():
    model, inputs = change(tiny(num_layers=2, fusion_layer=1), "Block", watched), random_inputs()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), model(inputs))
