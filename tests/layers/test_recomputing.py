"""Saved activations: fewer bytes, the same gradients, and no module passed over."""

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
from torch.nn.functional import gelu, layer_norm, linear

from benchmarks import baselines
from mbt_fast import create_model
from mbt_fast.autograd.mlp import gelu_linear, norm_mlp
from mbt_fast.autograd.norm_linear import norm_linear
from mbt_fast.layers import Block, Savings
from mbt_fast.testing import assert_close_to_exact, saved_bytes

FULL = {"memory": "full"}
memories = pytest.mark.parametrize("memory", ["reduced", "minimal"])
EPS = 1e-6


def eager_norm_linear(x, norm_weight, norm_bias, weight, bias):
    return linear(layer_norm(x, x.shape[-1:], norm_weight, norm_bias, EPS), weight, bias)


def eager_norm_mlp(x, norm_weight, norm_bias, weight1, bias1, weight2, bias2):
    hidden = eager_norm_linear(x, norm_weight, norm_bias, weight1, bias1)
    return linear(gelu(hidden, approximate="tanh"), weight2, bias2)


def two_halves(x, norm_weight, norm_bias, weight1, bias1, weight2, bias2):
    hidden = norm_linear(x, norm_weight, norm_bias, EPS, weight1, bias1)
    return gelu_linear(hidden, weight2, bias2, "tanh")


def whole(x, norm_weight, norm_bias, *weights):
    return norm_mlp(x, norm_weight, norm_bias, EPS, weights, "tanh")


CALLS = {"reduced": two_halves, "minimal": whole}
BIASES = {"biases": range(7), "no biases": (0, 1, 3, 5)}  # which arguments there are
biases = pytest.mark.parametrize("given", BIASES.values(), ids=BIASES.keys())


def arguments(given, dtype=torch.float64):
    """``x``, norm, two Linears, with gradients; what is not given is ``None``."""
    shapes = [(2, 3, 4), (4,), (4,), (5, 4), (5,), (4, 5), (4,)]
    tensors = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
    return [t.requires_grad_() if i in given else None for i, t in enumerate(tensors)]


@memories
@biases
def test_first_and_second_derivatives(memory, given):
    call, tensors = CALLS[memory], arguments(given)
    torch.testing.assert_close(call(*tensors), eager_norm_mlp(*tensors))
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@memories
@pytest.mark.parametrize(
    "trained", [{0}, {1, 2}, {3}, {4}, {5}, {6}, {0, 4}, set(range(1, 7))], ids=str
)
def test_frozen_tensors_get_no_gradient(memory, trained):
    """And the others get the one that they have among tensors that are all trained."""
    tensors = arguments(range(7))
    expected = torch.autograd.grad(eager_norm_mlp(*tensors).square().sum(), tensors)
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index in trained)
    CALLS[memory](*tensors).square().sum().backward()
    for index, tensor in enumerate(tensors):
        if index in trained:
            torch.testing.assert_close(tensor.grad, expected[index])
        else:
            assert tensor.grad is None


@memories
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gradients_by_the_tolerance_rule(memory, dtype):
    tensors = arguments(range(7), dtype)
    results = {}
    for name, call, wide in (
        ("actual", CALLS[memory], dtype),
        ("eager", eager_norm_mlp, dtype),
        ("exact", eager_norm_mlp, torch.float64),
    ):
        leaves = [t.detach().to(wide).requires_grad_() for t in tensors]
        out = call(*leaves)
        results[name] = [out, *torch.autograd.grad(out.sum(), leaves)]
    for parts in zip(*results.values(), strict=True):
        assert_close_to_exact(*parts)


def test_forward_mode_is_refused_by_name():
    tensors = arguments(range(7))
    for call in CALLS.values():
        with pytest.raises(NotImplementedError, match=r"set_savings\(memory='full'\)"):
            torch.func.jvp(call, tuple(tensors), tuple(torch.ones_like(t) for t in tensors))


@fusions
@lengths
@memories
def test_recomputing_changes_no_result(fusion, lengths, memory):
    model = tiny(**fusion).train()
    assert_results_unchanged(model, random_inputs(), lengths, {"memory": memory}, FULL)


@memories
def test_autocast_casts_inside(memory):
    """The dtype of logits and gradients is that of modules, and so are their values."""
    model, inputs, results = create_model("mbt_tiny"), random_inputs(dtype=torch.float32), {}
    torch.nn.init.normal_(model.head.weight)
    for name in (memory, "full"):
        model.set_savings(memory=name)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(inputs)
        results[name] = [logits, *torch.autograd.grad(logits.sum(), list(model.parameters()))]
    model.double()
    logits = model({m: x.double() for m, x in inputs.items()})
    exact = [logits, *torch.autograd.grad(logits.sum(), list(model.parameters()))]
    for parts in zip(*results.values(), exact, strict=True):
        assert_close_to_exact(*parts)


@memories
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_training(memory):
    model, inputs = tiny().set_savings(memory=memory).train(), random_inputs()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    parameters = list(model.parameters())
    grads = [
        torch.autograd.grad(run(inputs).square().sum(), parameters) for run in (compiled, model)
    ]
    torch.testing.assert_close(*grads)


def times_two(module):
    module.register_forward_hook(lambda module, args, output: 2 * output)
    return module


class TimesTwo(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return 2 * self.module(x)


@memories
@pytest.mark.parametrize("change", [times_two, TimesTwo], ids=["hook", "replacement"])
@pytest.mark.parametrize("name", ["norm1", "attn.qkv", "norm2", "mlp", "mlp.fc1", "mlp.fc2"])
def test_a_replaced_module_is_called(name, change, memory):
    """A quantised, adapted or watched module computes something else than its weights say."""
    model, inputs = tiny(), random_inputs()
    before = model(inputs)
    parent, _, child = name.rpartition(".")
    for layer in model.layers:
        owner = layer.block_of("rgb").get_submodule(parent)
        setattr(owner, child, change(getattr(owner, child)))
    after = model.set_savings(**FULL)(inputs)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(model.set_savings(memory=memory)(inputs), after)


NORM = {"eps": EPS, "dtype": torch.float64}
LACKING = {
    "qkv bias": ("attn.qkv", lambda: torch.nn.Linear(64, 192, bias=False, dtype=torch.float64)),
    "norm bias": ("norm1", lambda: torch.nn.LayerNorm(64, bias=False, **NORM)),
    "norm weights": ("norm2", lambda: torch.nn.LayerNorm(64, elementwise_affine=False, **NORM)),
}


@memories
@pytest.mark.parametrize(("name", "make"), LACKING.values(), ids=LACKING.keys())
def test_a_parameter_may_be_missing(name, make, memory):
    """As in blocks of other libraries."""
    model, inputs = tiny(), random_inputs()
    parent, _, child = name.rpartition(".")
    for layer in model.layers:
        setattr(layer.block_of("rgb").get_submodule(parent), child, make())
    expected = model.set_savings(**FULL, cls_only=False)(inputs)
    torch.testing.assert_close(model.set_savings(memory=memory, cls_only=True)(inputs), expected)


@memories
def test_dropout_draws_the_same_numbers(memory):
    model, results = tiny(dropout=0.3).train(), []
    for name in (memory, "full"):
        torch.manual_seed(0)
        results.append(model.set_savings(memory=name)(random_inputs()))
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saved_bytes_of_a_fusion_layer(dtype):
    """In units of the streams: 16 eager, 10 without norms and GELU, 6 without the first product."""
    model = create_model("mbt_base", num_layers=2, fusion_layer=0).to(dtype).train()
    layer, parameters = model.layers[0], list(model.layers[0].parameters())
    own = {
        m: torch.randn(1, rows, 768, dtype=dtype) for m, rows in (("rgb", 69), ("spectrogram", 41))
    }
    slots = torch.randn(1, 4, 768, dtype=dtype)
    joined = {m: torch.cat([x, slots], dim=1).requires_grad_() for m, x in own.items()}
    own = {m: x.requires_grad_() for m, x in own.items()}
    saved = {"eager": saved_bytes(lambda: baselines.bottleneck(layer, own, slots), parameters)}
    for memory in ("full", "reduced", "minimal"):
        model.set_savings(memory=memory)
        saved[memory] = saved_bytes(lambda: layer(joined, {}, n_slots=4), parameters)
    unit = sum(x.nbytes for x in joined.values())
    assert {name: round(count / unit) for name, count in saved.items()} == {
        "eager": 16,
        "full": 16,
        "reduced": 10,
        "minimal": 6,
    }
    assert saved["reduced"] <= 0.65 * saved["eager"]
    assert saved["minimal"] <= 0.45 * saved["eager"]


def test_nothing_is_saved_without_gradients():
    model, inputs = tiny(), random_inputs()
    with torch.no_grad():
        assert saved_bytes(lambda: model(inputs)) == 0


def test_eager_peer_is_the_model():
    model, inputs = tiny(), random_inputs()
    torch.testing.assert_close(baselines.forward(model, inputs), model(inputs))
    late = tiny(**FUSIONS["late"])
    torch.testing.assert_close(baselines.forward(late, inputs), late(inputs))


@pytest.mark.parametrize("memory", ["reduced", "minimal"])
def test_a_backward_under_autocast_of_a_forward_without(memory):
    """The gradient of GELU's output then came in another dtype than its input, as raw memory."""
    block = Block(64, 4, 1024).train()
    block.savings = Savings(memory=memory)
    x = torch.randn(2, 80, 64, requires_grad=True)
    heads = torch.randn(2, 80, 4, 16)
    grads = []
    for enabled in (False, True):
        out = sum(block.add_and_pass_mlp(x, heads, block.draw_survivors(x)))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            grads.append(torch.autograd.grad(out.square().sum(), x)[0])
    assert (grads[1] - grads[0]).norm() < 0.05 * grads[0].norm()
