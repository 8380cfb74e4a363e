"""Small models, their inputs, and the ways in which they are run: shared by the model's tests."""

import pytest
import torch

from mbt_fast import create_model
from mbt_fast.testing import assert_close_to_exact

RGB, SPECTROGRAM = (2, 32, 32), (64, 32)
FUSIONS = {
    "bottleneck": {},
    "bottleneck, shared": {"share_encoder": True},
    "vanilla": {"fusion": "vanilla"},
    "vanilla, shared": {"fusion": "vanilla", "share_encoder": True},
    "in order": {"update_order": ("spectrogram", "rgb")},
    "early": {"fusion_layer": 0},
    "late": {"fusion_layer": 4},
    "no bottlenecks": {"n_bottlenecks": 0},
}
RECOMPUTE = ("none", "norms", "mlp")
NO_RECOMPUTE = r"set_execution\(recompute='none'\)"
EXECUTIONS = {
    "default": {},
    "recompute all": {"recompute": "mlp"},
    "leave nothing out": {"cls_only": False, "skip_dropped": False, "recompute": "none"},
}
executions = pytest.mark.parametrize("options", EXECUTIONS.values(), ids=EXECUTIONS.keys())
fusions = pytest.mark.parametrize("fusion", FUSIONS.values(), ids=FUSIONS.keys())


def random_inputs(batch=3, dtype=torch.float64):
    return {
        "rgb": torch.randn(batch, 3, *RGB, dtype=dtype),
        "spectrogram": torch.randn(batch, *SPECTROGRAM, dtype=dtype),
    }


def tiny(**overrides):
    """A model whose classifier is not zero, so that its logits say something."""
    model = create_model("mbt_tiny", **overrides).double().eval()
    torch.nn.init.normal_(model.head.weight)
    return model


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


LENGTHS = {
    "no padding": None,
    "padding and absence": {"rgb": int32(9, 0, 4), "spectrogram": int32(5, 9, 0)},
}
lengths = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())


class TimesTwo(torch.nn.Module):
    """A module in the place of another, as adapters and quantisation put it."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return 2 * self.module(x)


def hooked(module):
    """The same module, with a hook that does likewise."""
    module.register_forward_hook(lambda module, args, output: 2 * output)
    return module


changes = pytest.mark.parametrize("change", [hooked, TimesTwo], ids=["hook", "replacement"])


def gradients(loss, leaves):
    """By name; ``None`` where a leaf takes no part."""
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {f"gradient of {n}": g for n, g in zip(leaves, grads, strict=True)}


def outputs_and_gradients(model, inputs, lengths, dtype, options, seed):
    """Logits of each modality, and all gradients, those of the inputs among them."""
    torch.manual_seed(seed)
    model.to(dtype).set_execution(**options)
    leaves = {m: x.detach().to(dtype).requires_grad_() for m, x in inputs.items()}
    logits = model.forward_modalities(leaves, lengths)
    loss = sum(value.square().sum() for value in logits.values())
    return logits | gradients(loss, {**dict(model.named_parameters()), **leaves})


def assert_all_close_to_exact(actual, eager, exact):
    """Results by name, by the tolerance rule; ``None`` where no result is."""
    for name, value in exact.items():
        if value is None:
            assert actual[name] is None, f"{name} is only in the actual results"
        else:
            assert_close_to_exact(actual[name], eager[name], value, name=name)


def assert_results_unchanged(model, inputs, lengths, on, off, seed=0):
    """Executed with the options ``on`` as with ``off``, by the tolerance rule."""
    calls = ((torch.float32, on), (torch.float32, off), (torch.float64, off))
    model.float()
    assert_all_close_to_exact(
        *(outputs_and_gradients(model, inputs, lengths, *call, seed) for call in calls)
    )
