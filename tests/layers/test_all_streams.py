"""Norms and residual sums of all streams at once, in layers on a kernel backend."""

from collections import Counter

import pytest
import torch
from layer_cases import DEVICE, kernel_backends
from model_cases import FUSIONS, LENGTHS, random_inputs, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from mbt_fast import create_model, ops
from mbt_fast.testing import assert_close_to_exact, saved_bytes

pytestmark = kernel_backends
NAMES = {
    ops.add_layer_norm_fwd: "norm",
    ops.residual_add_fwd: "sum",
    ops.residual_add_bwd: "sum backward",
    torch.ops.aten.native_layer_norm.default: "stock norm",
    torch.ops.aten.add.Tensor: "stock sum",
    torch.ops.aten.copy_.default: "copy",
}


class CountParts(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in NAMES:
            self.counts[NAMES[func]] += 1
        return func(*args, **(kwargs or {}))


def count_parts(layer, streams):
    with CountParts() as counter:
        layer(streams, {}, n_slots=4)
    return dict(counter.counts)


def results(model, inputs, lengths, dtype, backend):
    """Logits and all gradients."""
    model.to(DEVICE, dtype).set_backend(backend)
    torch.manual_seed(3)  # of stochastic depth
    lengths = None if lengths is None else {m: n.to(DEVICE) for m, n in lengths.items()}
    logits = model({m: x.to(DEVICE, dtype) for m, x in inputs.items()}, lengths)
    return [logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))]


def assert_the_same(model, inputs, lengths, backend):
    calls = [(torch.float32, backend), (torch.float32, "reference"), (torch.float64, "reference")]
    for triple in zip(*(results(model, inputs, lengths, *call) for call in calls), strict=True):
        assert_close_to_exact(*triple)


def make_layer(backend, dtype=torch.float32):
    """A layer, and streams for it."""
    model = tiny().to(DEVICE, dtype).train().set_backend(backend)
    streams = {m: torch.randn(2, s, 64, device=DEVICE).to(dtype) for m, s in (("a", 9), ("b", 6))}
    layer = model.layers[-1]
    return model, layer, dict(zip(model.config.modalities, streams.values(), strict=True))


SMALL = {"num_layers": 2, "fusion_layer": 1}


@pytest.mark.parametrize("fusion", ["bottleneck", "bottleneck, shared", "no bottlenecks"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_a_model_on_kernels_is_the_reference(backend, fusion, lengths):
    assert_the_same(tiny(**SMALL, **FUSIONS[fusion]), random_inputs(), lengths, backend)


@pytest.mark.parametrize("skip", [False, True], ids=["masked", "skipped"])
def test_stochastic_depth_is_the_same_on_kernels(backend, skip):
    model = tiny(**SMALL, stochastic_depth=0.6).train().set_savings(skip_dropped=skip)
    assert_the_same(model, random_inputs(4), None, backend)


def test_all_streams_take_two_norms_and_one_sum_with_their_slots(backend):
    _, layer, streams = make_layer(backend)
    assert count_parts(layer, streams) == {"norm": 2, "sum": 1}
    with torch.no_grad():
        assert count_parts(layer, streams) == {"norm": 2, "sum": 1}


def test_nothing_is_copied_to_share_slots_in_the_backward(backend):
    """Writing them in place cloned the gradient of every stream."""
    _, layer, streams = make_layer(backend)
    streams = {m: x.requires_grad_() for m, x in streams.items()}
    outs = list(layer(streams, {}, n_slots=4).values())
    with CountParts() as counter:
        torch.autograd.grad(outs, list(streams.values()), [torch.ones_like(x) for x in outs])
    assert counter.counts["sum backward"] == 1
    assert not counter.counts["copy"]


CHANGES = {
    "memory full": lambda model, block: model.set_savings(memory="full"),
    "memory minimal": lambda model, block: model.set_savings(memory="minimal"),
    "dropout": lambda model, block: setattr(block, "dropout", 0.1),
    "another eps": lambda model, block: setattr(block.norm2, "eps", 1e-5),
    "hook on the norm": lambda model, block: block.norm1.register_forward_hook(lambda *call: None),
    "hook on the MLP": lambda model, block: block.mlp.register_forward_hook(lambda *call: None),
    "hook on a Linear": lambda model, block: block.mlp.fc1.register_forward_hook(
        lambda *call: None
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_blocks_that_cannot_be_joined_norm_by_themselves(backend, change):
    model, layer, streams = make_layer(backend)
    change(model, layer.block_of("rgb"))
    assert count_parts(layer, streams) == {"stock norm": 4, "stock sum": 2, "sum": 1}


@pytest.mark.parametrize("name", ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp", "mlp.fc1"])
def test_a_module_with_a_hook_is_called(backend, name):
    _, layer, streams = make_layer(backend)
    before = layer(streams, {}, n_slots=4)["rgb"]
    module = layer.block_of("rgb").get_submodule(name)
    module.register_forward_hook(lambda module, args, output: 2 * output)
    assert not torch.allclose(layer(streams, {}, n_slots=4)["rgb"], before)


def test_a_wider_branch_widens_its_stream(backend):
    """As any sum of torch does: here a hook's result, elsewhere a replaced MLP's."""
    _, layer, streams = make_layer(backend)
    for modality in streams:
        layer.block_of(modality).mlp.register_forward_hook(lambda *call: call[-1].double())
    assert {x.dtype for x in layer(streams, {}, n_slots=4).values()} == {torch.float64}


def test_no_more_is_saved_than_block_by_block(backend):
    model, layer, streams = make_layer(backend)
    streams = {m: x.requires_grad_() for m, x in streams.items()}
    saved = {}
    for name in (backend, "reference"):
        model.set_backend(backend)
        layer._norms = name
        parameters = list(layer.parameters())
        saved[name] = saved_bytes(lambda: layer(streams, {}, n_slots=4), parameters)
    assert saved[backend] <= saved["reference"]


def test_second_derivatives_are_refused_by_name(backend):
    _, layer, streams = make_layer(backend)
    x = streams["rgb"].requires_grad_()
    out = layer(streams, {}, n_slots=4)["rgb"]
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        grad.sum().backward()


def test_under_autocast_norms_stay_float32(backend):
    if DEVICE.type == "cpu" and backend == "triton":
        pytest.skip("the interpreter does not run in bfloat16")
    model, inputs = tiny().to(DEVICE, torch.float32).train(), random_inputs(dtype=torch.float32)
    inputs = {m: x.to(DEVICE) for m, x in inputs.items()}
    found = {}
    for name in (backend, "reference"):
        model.set_backend(name)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            logits = model(inputs)
        found[name] = [logits, *torch.autograd.grad(logits.sum(), list(model.parameters()))]
    exact = results_in_float64(model, inputs)
    for triple in zip(*found.values(), exact, strict=True):
        assert_close_to_exact(*triple)


def results_in_float64(model, inputs):
    model.double().set_backend("reference")
    logits = model({m: x.double() for m, x in inputs.items()})
    return [logits, *torch.autograd.grad(logits.sum(), list(model.parameters()))]


def test_a_layer_of_the_real_size_saves_what_it_promises(backend):
    """10 times the size of its streams, as block by block."""
    if backend == "triton" and DEVICE.type == "cpu":
        pytest.skip("too slow in the interpreter")
    model = create_model("mbt_base", num_layers=1, fusion_layer=0).to(DEVICE).train()
    layer = model.set_backend(backend).layers[0]
    streams = {
        m: torch.randn(1, rows, 768, device=DEVICE, requires_grad=True)
        for m, rows in (("rgb", 73), ("spectrogram", 45))
    }
    saved = saved_bytes(lambda: layer(streams, {}, n_slots=4), list(layer.parameters()))
    assert round(saved / sum(x.nbytes for x in streams.values())) == 10
