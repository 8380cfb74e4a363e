"""Training on a kernel backend follows the reference, step by step."""

import pytest
import torch
from backends import DEVICE, kernels_of
from torch.nn.functional import cross_entropy

from mbt_fast import create_model

STEPS = 200
LARGEST_DIFFERENCE = 1e-3  # of the loss, relative: what rounding may grow to in 200 steps
KERNELS = [name for name in kernels_of("bottleneck_attention") if name != "triton"]
pytestmark = pytest.mark.slow


def losses(backend):
    """The loss of each step, from the same weights and the same data."""
    torch.manual_seed(1)
    model = create_model("mbt_tiny", stochastic_depth=0.2).to(DEVICE).train()
    model.set_backend(backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    shapes = {m: model.embedding(m).input_shape for m in model.config.modalities}
    clips = {m: torch.randn(16, *shape, device=DEVICE) for m, shape in shapes.items()}
    labels = torch.randint(model.config.num_classes, (16,), device=DEVICE)
    found = []
    for step in range(STEPS):
        part = slice(4 * (step % 4), 4 * (step % 4) + 4)
        logits = model.forward_modalities({m: clip[part] for m, clip in clips.items()})
        loss = sum(cross_entropy(entry, labels[part]) for entry in logits.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss))
    return torch.tensor(found)


@pytest.fixture(scope="module")
def expected():
    return losses("reference")


@pytest.mark.parametrize("backend", ["auto", "sdpa", *KERNELS])
def test_losses_of_200_steps_are_those_of_the_reference(backend, expected):
    assert expected[-20:].mean() < 0.5 * expected[:20].mean()  # it learns, so there is a curve
    difference = (losses(backend) - expected).abs() / expected
    assert difference.max() <= LARGEST_DIFFERENCE
