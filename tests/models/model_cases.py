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
    "early": {"fusion_layer": 0},
    "late": {"fusion_layer": 4},
    "no bottlenecks": {"n_bottlenecks": 0},
}
SAVINGS = {
    "default savings": {},
    "all savings": {"memory": "minimal"},
    "no savings": {"cls_only": False, "skip_dropped": False, "memory": "full"},
}
savings = pytest.mark.parametrize("savings", SAVINGS.values(), ids=SAVINGS.keys())
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


def outputs_and_gradients(model, inputs, lengths, dtype, savings, seed):
    """Logits of each modality, and all gradients, those of the inputs among them."""
    torch.manual_seed(seed)
    model.to(dtype).set_savings(**savings)
    leaves = {m: x.to(dtype).requires_grad_() for m, x in inputs.items()}
    logits = model.forward_modalities(leaves, lengths)
    named = {**dict(model.named_parameters()), **leaves}
    loss = sum(value.square().sum() for value in logits.values())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return logits | {f"gradient of {n}": g for n, g in zip(named, grads, strict=True)}


def assert_results_unchanged(model, inputs, lengths, on, off, seed=0):
    """With the savings ``on`` as with them ``off``, by the tolerance rule."""
    model.float()
    results = {
        name: outputs_and_gradients(model, inputs, lengths, dtype, savings, seed)
        for name, dtype, savings in (
            ("actual", torch.float32, on),
            ("eager", torch.float32, off),
            ("exact", torch.float64, off),
        )
    }
    for name, exact in results["exact"].items():
        actual, eager = results["actual"][name], results["eager"][name]
        if exact is None:
            assert actual is None, f"{name} has a gradient only with the savings"
        else:
            assert_close_to_exact(actual, eager, exact, name=name)
