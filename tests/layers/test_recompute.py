"""Recomputed activations: fewer bytes, the same gradients, and no module passed over."""

import pytest
import torch
from backends import BACKENDS, DEVICE, DTYPES
from model_cases import (
    FUSIONS,
    NO_RECOMPUTE,
    assert_all_close_to_exact,
    assert_results_unchanged,
    changes,
    fusions,
    gradients,
    lengths,
    random_inputs,
    tiny,
)
from torch.func import functional_call

from benchmarks import baselines
from mbt_fast import create_model
from mbt_fast.layers.execution import RECOMPUTE
from mbt_fast.testing import saved_bytes

NONE = {"recompute": "none"}
recomputes = pytest.mark.parametrize("recompute", ["norms", "mlp"])


def small_layer(recompute, dtype=torch.float64, biases=True, backend="reference"):
    """A layer of one modality with heads of 4 channels, and tokens for it."""
    model = create_model(
        "mbt_tiny", hidden_size=8, num_heads=2, mlp_dim=5, num_layers=1, fusion_layer=1
    )
    layer = model.to(dtype).set_backend(backend).set_execution(recompute=recompute).layers[0]
    for name, parameter in layer.named_parameters():
        torch.nn.init.normal_(parameter)
        if not biases and name.endswith("bias"):
            owner, _, last = name.rpartition(".")
            setattr(layer.get_submodule(owner), last, None)
    leaves = {n: p for n, p in layer.named_parameters() if n.startswith("rgb.")}
    leaves["x"] = torch.randn(2, 3, 8, dtype=dtype, requires_grad=True)
    return layer, leaves


def call(layer, leaves):
    parameters = {n: p for n, p in leaves.items() if n != "x"}
    return functional_call(layer, parameters, ({"rgb": leaves["x"]}, {}))["rgb"]


@recomputes
@pytest.mark.parametrize("biases", [True, False])
def test_first_and_second_derivatives(recompute, biases):
    layer, leaves = small_layer(recompute, biases=biases)

    def run(*tensors):
        return call(layer, dict(zip(leaves, tensors, strict=True)))

    assert torch.autograd.gradcheck(run, tuple(leaves.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, tuple(leaves.values()), fast_mode=True)


TRAINED = {
    "input": {"x"},
    "norm": {"norm2.weight", "norm2.bias"},
    "projection": {"attn.qkv.weight"},
    "first weight": {"mlp.fc1.weight"},
    "first bias": {"mlp.fc1.bias"},
    "second weight": {"mlp.fc2.weight"},
    "second bias": {"mlp.fc2.bias"},
    "input and first bias": {"x", "mlp.fc1.bias"},
}


@recomputes
@pytest.mark.parametrize("trained", TRAINED.values(), ids=TRAINED.keys())
@pytest.mark.parametrize("inverse", [False, True])
def test_frozen_tensors_get_no_gradient(recompute, trained, inverse):
    """And the others get the one that they have among tensors that are all trained."""
    layer, leaves = small_layer(recompute)
    expected = gradients(call(layer, leaves).square().sum(), leaves)
    for name, leaf in leaves.items():
        leaf.requires_grad_((name.removeprefix("rgb.") in trained) != inverse)
    call(layer, leaves).square().sum().backward()
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            torch.testing.assert_close(leaf.grad, expected[f"gradient of {name}"])
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_a_stream_gives_no_other_a_gradient(recompute):
    """On torch's own functions streams that share no slots have nothing in common."""
    model, inputs = tiny(fusion_layer=4).set_backend("sdpa"), random_inputs()
    model.set_execution(recompute=recompute).forward_modalities(inputs)["rgb"].sum().backward()
    of_sound = [p.grad for name, p in model.named_parameters() if "spectrogram" in name]
    assert {type(grad) for grad in of_sound} == {type(None)}
    for block in (layer.block_of("spectrogram") for layer in model.layers):
        block.requires_grad_(False)
    streams = {"rgb": torch.randn(2, 9, 64).double(), "spectrogram": torch.randn(2, 6, 64).double()}
    outs = model.layers[0](streams, {})
    needs = {modality: out.requires_grad for modality, out in outs.items()}
    assert needs == {"rgb": True, "spectrogram": False}


@recomputes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_by_the_tolerance_rule(recompute, dtype):
    _, leaves = small_layer(recompute, dtype)
    results = []
    for way, wide in ((recompute, dtype), ("none", dtype), ("none", torch.float64)):
        copy, _ = small_layer(way, wide)
        cast = {n: t.detach().to(wide).requires_grad_() for n, t in leaves.items()}
        out = call(copy, cast)
        results.append({"out": out} | gradients(out.sum(), cast))
    assert_all_close_to_exact(*results)


@recomputes
def test_forward_mode_is_refused_by_name(recompute):
    layer, leaves = small_layer(recompute)
    with pytest.raises(NotImplementedError, match=NO_RECOMPUTE):
        torch.func.jvp(lambda x: call(layer, leaves | {"x": x}), (leaves["x"],), (leaves["x"],))


@fusions
@lengths
@recomputes
def test_it_changes_no_result(fusion, lengths, recompute):
    model = tiny(**fusion).train()
    assert_results_unchanged(model, random_inputs(), lengths, {"recompute": recompute}, NONE)


@recomputes
def test_autocast_casts_inside(recompute):
    """The dtype of logits and gradients is that of modules, and so are their values."""
    model, inputs, results = create_model("mbt_tiny"), random_inputs(dtype=torch.float32), []
    torch.nn.init.normal_(model.head.weight)
    for way, dtype in (
        (recompute, torch.float32),
        ("none", torch.float32),
        ("none", torch.float64),
    ):
        model.to(dtype).set_execution(recompute=way)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32):
            logits = model({m: x.to(dtype) for m, x in inputs.items()})
        results.append({"out": logits} | gradients(logits.sum(), dict(model.named_parameters())))
    assert_all_close_to_exact(*results)


@pytest.mark.parametrize("recompute", ["norms", pytest.param("mlp", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_training(recompute):
    model, inputs = tiny(num_layers=2, fusion_layer=1).train(), random_inputs()
    model.set_execution(recompute=recompute)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    parameters = list(model.parameters())
    grads = (torch.autograd.grad(r(inputs).square().sum(), parameters) for r in (compiled, model))
    torch.testing.assert_close(*grads)


@recomputes
@changes
@pytest.mark.parametrize("name", ["norm1", "attn.qkv", "norm2", "mlp", "mlp.fc1", "mlp.fc2"])
def test_a_replaced_module_is_called(name, change, recompute):
    """A quantised, adapted or watched module computes something else than its weights say."""
    model, inputs = tiny(), random_inputs()
    before = model(inputs)
    replace(model, name, change)
    after = model.set_execution(**NONE)(inputs)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(model.set_execution(recompute=recompute)(inputs), after)


def replace(model, name, change):
    """Change a module of the first modality in every layer."""
    parent, _, child = name.rpartition(".")
    for layer in model.layers:
        owner = layer.block_of("rgb").get_submodule(parent)
        setattr(owner, child, change(getattr(owner, child)))


NORM = {"eps": 1e-6, "dtype": torch.float64}
LACKING = {
    "qkv bias": ("attn.qkv", lambda _: torch.nn.Linear(64, 192, bias=False, dtype=torch.float64)),
    "norm bias": ("norm1", lambda _: torch.nn.LayerNorm(64, bias=False, **NORM)),
    "norm weights": ("norm2", lambda _: torch.nn.LayerNorm(64, elementwise_affine=False, **NORM)),
}


@recomputes
@pytest.mark.parametrize(("name", "make"), LACKING.values(), ids=LACKING.keys())
def test_a_parameter_may_be_missing(name, make, recompute):
    """As in blocks of other libraries."""
    model, inputs = tiny(), random_inputs()
    replace(model, name, make)
    expected = model.set_execution(**NONE, cls_only=False)(inputs)
    actual = model.set_execution(recompute=recompute, cls_only=True)(inputs)
    torch.testing.assert_close(actual, expected)


@recomputes
def test_dropout_draws_the_same_numbers(recompute):
    model, results = tiny(dropout=0.3).train(), []
    for way in (recompute, "none"):
        torch.manual_seed(0)
        results.append(model.set_execution(recompute=way)(random_inputs()))
    assert torch.equal(*results)


def real_layer(dtype):
    """A layer of MBT-Base, and few tokens for it, with and without 4 slots."""
    model = create_model("mbt_base", num_layers=1, fusion_layer=0).to(DEVICE, dtype).train()
    own = {
        m: torch.randn(1, rows, 768, dtype=dtype, device=DEVICE)
        for m, rows in (("rgb", 69), ("spectrogram", 41))
    }
    slots = torch.randn(1, 4, 768, dtype=dtype, device=DEVICE)
    joined = {m: torch.cat([x, slots], dim=1).requires_grad_() for m, x in own.items()}
    return model, {m: x.requires_grad_() for m, x in own.items()}, slots, joined


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["auto", *(n for n in BACKENDS if n != "reference")])
def test_saved_bytes_of_a_fusion_layer(backend, dtype):
    """In units of the streams: 16 eager, 10 without norms and GELU, 6 without the first product."""
    if backend == "triton" and DEVICE.type == "cpu":
        pytest.skip("too slow in the interpreter")
    model, own, slots, joined = real_layer(dtype)
    layer = model.set_backend(backend).layers[0]
    parameters, unit = list(layer.parameters()), sum(x.nbytes for x in joined.values())
    saved = {"eager": saved_bytes(lambda: baselines.bottleneck(layer, own, slots), parameters)}
    for recompute in ("none", "norms", "mlp"):
        model.set_execution(recompute=recompute)
        saved[recompute] = saved_bytes(lambda: layer(joined, {}, n_slots=4), parameters)
    rounded = {name: round(count / unit) for name, count in saved.items()}
    assert rounded == {"eager": 16, "none": 16, "norms": 10, "mlp": 6}
    assert saved["norms"] <= 0.65 * saved["eager"]
    assert saved["mlp"] <= 0.45 * saved["eager"]


def test_nothing_is_saved_without_gradients():
    model, inputs = tiny(), random_inputs()
    with torch.no_grad():
        assert saved_bytes(lambda: model(inputs)) == 0


@pytest.mark.parametrize("fusion", ["bottleneck", "late"])
def test_the_eager_baseline_is_the_model(fusion):
    model, inputs = tiny(**FUSIONS[fusion]), random_inputs()
    torch.testing.assert_close(baselines.forward(model, inputs), model(inputs))


@recomputes
def test_a_backward_under_autocast_of_a_forward_without(recompute):
    """The gradient of GELU's output then came in another dtype than its input, as raw memory."""
    model = create_model("mbt_tiny", mlp_dim=1024).train().set_execution(recompute=recompute)
    x = torch.randn(2, 80, 64, requires_grad=True)
    grads = []
    for enabled in (False, True):
        out = model.layers[0]({"rgb": x}, {})["rgb"]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            grads.append(torch.autograd.grad(out.square().sum(), x)[0])
    assert (grads[1] - grads[0]).norm() < 0.05 * grads[0].norm()
