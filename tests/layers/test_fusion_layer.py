"""A layer of all modalities: on every backend what it is on the reference, module by module."""

import pytest
import torch
from backends import BACKENDS, DEVICE, OwnCalls, kernels_of
from layer_cases import equal
from model_cases import (
    FUSIONS,
    assert_all_close_to_exact,
    gradients,
    hooked,
    lengths,
    random_inputs,
    tiny,
)
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

backends = pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
kernels = pytest.mark.parametrize("backend", kernels_of("add_layer_norm"))
ROWS = {"rgb": 9, "spectrogram": 6}


def to_device(tensors, dtype=None):
    return tensors and {m: x.to(DEVICE, dtype) for m, x in tensors.items()}


def assert_model_is_the_reference(model, inputs, lengths, backend):
    """Logits and all gradients, by the tolerance rule."""
    results = []
    for dtype, name in (
        (torch.float32, backend),
        (torch.float32, "reference"),
        (torch.float64, "reference"),
    ):
        model.to(DEVICE, dtype).set_backend(name)
        torch.manual_seed(3)  # of stochastic depth
        logits = model(to_device(inputs, dtype), to_device(lengths))
        found = gradients(logits.square().sum(), dict(model.named_parameters()))
        results.append({"logits": logits} | found)
    assert_all_close_to_exact(*results)


def make(backend, dtype=torch.float32):
    """A fused layer in training, and streams with 4 slots for it."""
    layer = tiny().to(DEVICE, dtype).train().set_backend(backend).layers[-1]
    streams = {m: torch.randn(2, s, 64, device=DEVICE).to(dtype) for m, s in ROWS.items()}
    return layer, {m: x.requires_grad_() for m, x in streams.items()}


def run(layer, streams):
    return layer(streams, {}, n_slots=4)


SMALL = {"num_layers": 2, "fusion_layer": 1}


@backends
@pytest.mark.parametrize("fusion", ["bottleneck", "bottleneck, shared", "no bottlenecks"])
@lengths
def test_a_model_is_the_reference(backend, fusion, lengths):
    model = tiny(**SMALL, **FUSIONS[fusion])
    assert_model_is_the_reference(model, random_inputs(), lengths, backend)


@backends
@pytest.mark.parametrize("skip", [False, True], ids=["masked", "skipped"])
def test_stochastic_depth_is_the_same(backend, skip):
    model = tiny(**SMALL, stochastic_depth=0.6).train().set_execution(skip_dropped=skip)
    assert_model_is_the_reference(model, random_inputs(4), None, backend)


CHANGES = {
    "recompute nothing": lambda model, block: model.set_execution(recompute="none"),
    "recompute the MLP": lambda model, block: model.set_execution(recompute="mlp"),
    "dropout": lambda model, block: setattr(block, "dropout", 0.1),
    "another eps": lambda model, block: setattr(block.norm2, "eps", 0.1),
    "no norm weights": lambda model, block: setattr(
        block, "norm1", torch.nn.LayerNorm(64, elementwise_affine=False)
    ),
    "hook on the norm": lambda model, block: hooked(block.norm1),
    "hook on the MLP": lambda model, block: hooked(block.mlp),
    "hook on a Linear": lambda model, block: hooked(block.mlp.fc1),
    "parametrised": lambda model, block: torch.nn.utils.parametrizations.weight_norm(block.mlp.fc2),
}


@backends
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_block_is_the_reference(backend, change):
    """Of one modality, while the other's stays as it was built."""
    model = tiny(**SMALL).train()
    change(model, model.layers[-1].block_of("rgb"))
    assert_model_is_the_reference(model, random_inputs(), None, backend)


SEEN = {"norm1": 64, "attn.qkv": 192, "attn.proj": 64, "norm2": 64, "mlp": 64, "mlp.fc1": 128,
        "mlp.fc2": 64}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SEEN)
def test_a_module_with_a_hook_is_called_once_with_all_rows(backend, name):
    layer, streams = make(backend)
    before, shapes = run(layer, streams)["rgb"], []

    def hook(module, args, output):
        shapes.append(tuple(output.shape))
        return 2 * output

    layer.block_of("rgb").get_submodule(name).register_forward_hook(hook)
    assert not torch.allclose(run(layer, streams)["rgb"], before)
    assert shapes == [(2, ROWS["rgb"], SEEN[name])]


@pytest.mark.parametrize("options", [{"pairwise": True}, {"rows": [0]}], ids=str)
def test_a_norm_with_a_hook_is_called_once_with_all_rows_in_dense_attention(options):
    layer, streams = make("auto")
    before, shapes = layer(streams, {}, **options)["rgb"], []

    def hook(module, args, output):
        shapes.append(tuple(output.shape))
        return output + 1

    layer.block_of("rgb").norm1.register_forward_hook(hook)
    assert not torch.allclose(layer(streams, {}, **options)["rgb"], before)
    assert shapes == [(2, sum(ROWS.values()) if "pairwise" in options else ROWS["rgb"], 64)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wider_branch_widens_its_stream(backend):
    """As any sum of torch does: here a hook's result, elsewhere a replaced MLP's."""
    layer, streams = make(backend)
    for modality in streams:
        layer.block_of(modality).mlp.register_forward_hook(lambda *call: call[-1].double())
    assert {x.dtype for x in run(layer, streams).values()} == {torch.float64}


@backends
def test_streams_of_different_dtypes_under_autocast(backend):
    if DEVICE.type == "cpu" and backend == "triton":
        pytest.skip("the interpreter does not run in bfloat16")
    layer, streams = make(backend)
    streams["rgb"] = streams["rgb"].bfloat16()
    results = []
    for name in (backend, "reference"):
        layer.set_backend(name)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            results.append(run(layer, streams))
    results.append(run(layer.double(), {m: x.double() for m, x in streams.items()}))
    assert results[0]["spectrogram"].dtype == torch.float32
    assert_all_close_to_exact(*results)


@backends
def test_it_is_deterministic(backend):
    layer, streams = make(backend)
    leaves, found = [*streams.values(), *layer.parameters()], []
    for _ in range(2):
        outs = list(run(layer, streams).values())
        grads = torch.autograd.grad(sum(x.square().sum() for x in outs), leaves)
        found.append([*outs, *grads])
    assert equal(*found)


@kernels
def test_all_streams_take_two_norms_and_one_sum_with_their_slots(backend):
    layer, streams = make(backend)
    for grad in (True, False):
        with OwnCalls() as own, torch.set_grad_enabled(grad):
            run(layer, streams)
        assert own.names.count("add_layer_norm_fwd") == 2
        assert own.names.count("residual_add_fwd") == 1


class Copies(TorchDispatchMode):
    """How often a tensor is copied into another."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.copy_.default
        return func(*args, **(kwargs or {}))


@kernels
def test_nothing_is_copied_to_share_slots_in_the_backward(backend):
    """Writing them in place cloned the gradient of every stream."""
    layer, streams = make(backend)
    outs = list(run(layer, streams).values())
    with OwnCalls() as own, Copies() as copies:
        torch.autograd.grad(outs, list(streams.values()), [torch.ones_like(x) for x in outs])
    assert own.names.count("residual_add_bwd") == 1
    assert not copies.count


@kernels
def test_second_derivatives_are_refused_by_name(backend):
    layer, streams = make(backend)
    out = run(layer, streams)["rgb"]
    (grad,) = torch.autograd.grad(out.square().sum(), streams["rgb"], create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        grad.sum().backward()


@backends
def test_autocast_is_the_reference_under_autocast(backend):
    if DEVICE.type == "cpu" and backend == "triton":
        pytest.skip("the interpreter does not run in bfloat16")
    model, inputs, results = tiny().to(DEVICE).train(), random_inputs(), []
    for dtype, name in (
        (torch.float32, backend),
        (torch.float32, "reference"),
        (torch.float64, "reference"),
    ):
        model.to(dtype).set_backend(name)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype == torch.float32):
            logits = model(to_device(inputs, dtype))
        found = gradients(logits.sum(), dict(model.named_parameters()))
        results.append({"logits": logits} | found)
    assert_all_close_to_exact(*results)


@pytest.mark.usefixtures("fresh_dynamo")
@torch.no_grad()
def test_layers_compiled_one_by_one_share_a_graph():
    model, counter = tiny(fusion_layer=0).float().eval(), CompileCounter()
    for layer in model.layers:
        layer.compile(backend=counter, fullgraph=True)
    model(random_inputs(dtype=torch.float32))
    assert counter.frame_count == 1 < len(model.layers)
