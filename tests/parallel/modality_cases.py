"""Models, batches and training steps that tests of modality and tensor parallelism share."""

import math

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from mbt_fast import MBTConfig
from mbt_fast.models import MBT
from mbt_fast.models.head import presence

CLIPS, CLASSES, STEPS = 4, 6, 5
BOUND = 1e-12  # of float64, relative to the largest number or to 1
SIZES = {
    "modalities": ("rgb", "spectrogram"),
    "input_size": {"rgb": (2, 32, 32), "spectrogram": (64, 32), "flow": (1, 32, 32)},
    "patch_size": {"rgb": (1, 16, 16), "spectrogram": (16, 16), "flow": (1, 16, 16)},
    "hidden_size": 16,
    "num_layers": 4,
    "num_heads": 4,
    "mlp_dim": 32,
    "num_classes": CLASSES,
    "fusion_layer": 1,
    "n_bottlenecks": 2,
}


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


# Of the whole batch; the first clip lacks sound, the last one everything.
LENGTHS = {"rgb": int32(9, 0, 4, 0), "spectrogram": int32(0, 9, 5, 0)}


def model_of(**overrides):
    torch.manual_seed(0)
    model = MBT(MBTConfig(**{**SIZES, **overrides})).double().train()
    torch.nn.init.normal_(model.head.weight)
    return model


def batch_of(modalities=("rgb", "spectrogram"), step=0):
    torch.manual_seed(1 + step)
    shapes = {"rgb": (3, 2, 32, 32), "spectrogram": (64, 32), "flow": (3, 1, 32, 32)}
    inputs = {m: torch.randn(CLIPS, *shapes[m], dtype=torch.float64) for m in shapes}
    targets = one_hot(torch.randint(CLASSES, (CLIPS,)), CLASSES).double()
    return {m: inputs[m] for m in modalities}, targets


def example_losses(logits, targets):
    return binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)


def official_loss(model, inputs, lengths, targets):
    """The mean over clips of the mean over the modalities that each has."""
    logits = model.forward_modalities(inputs, lengths)
    present = presence(logits, list(inputs), lengths)
    losses = torch.stack([example_losses(each, targets) for each in logits.values()])
    masks = torch.stack([mask[:, 0] for mask in present.values()])
    return (losses.where(masks, 0).sum(0) / masks.sum(0).clamp(min=1)).mean()


def loss_of_mean(model, inputs, lengths, targets):
    return example_losses(model(inputs, lengths), targets).mean()


def part_of(values, part, parts):
    """Of every tensor, the rows of one of several ranks."""
    return {m: x.chunk(parts)[part] for m, x in values.items()}


def train_alone(lengths, loss_of=official_loss, steps=STEPS, max_norm=math.inf, **overrides):
    """One process: losses, norms, the gradients of the last step, and the weights after it."""
    model = model_of(**overrides)
    optimizer = optimizer_of(model)
    losses, norms = [], []
    for step in range(steps):
        inputs, targets = batch_of(model.config.modalities, step)
        optimizer.zero_grad()
        loss = loss_of(model, inputs, lengths, targets)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm))
        losses.append(loss.detach())
        optimizer.step()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return losses, norms, grads, model.state_dict()


def whole(tensor):
    """All of a tensor that may be sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def assert_same_run(ranks, alone):
    """What every rank has of the losses, norms, gradients and weights is that of one process."""
    losses, norms, *_ = alone
    for found in ranks:
        assert_same(found[0], losses, "loss")
        assert_same(found[1], norms, "norm")
        for kind, values, expected in zip(
            ("gradient", "weight"), found[2:], alone[2:], strict=True
        ):
            assert values, f"a rank has no {kind}s"
            for name, value in values.items():
                assert_same([value], [expected[name]], f"{kind} of {name}")
    for index in (2, 3):
        assert alone[index].keys() == set().union(*(found[index] for found in ranks))


def assert_same(actual, expected, name):
    for one, other in zip(actual, expected, strict=True):
        assert (one is None) == (other is None), name
        if other is not None:
            error = (one - other).abs().max().item()
            assert error <= BOUND * max(1, other.abs().max().item()), f"{name}: {error}"


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def mesh_of(**sizes):
    return init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
