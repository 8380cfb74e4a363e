"""Tensor parallelism on two and four processes: losses, gradients and weights are those of one."""

import math
from functools import cache

import pytest
import torch
from modality_cases import (
    LENGTHS,
    STEPS,
    assert_same_run,
    batch_of,
    mesh_of,
    model_of,
    official_loss,
    optimizer_of,
    train_alone,
    whole,
)
from ranks import run

from mbt_fast.checkpoint import save_pretrained
from mbt_fast.errors import CheckpointError
from mbt_fast.models import MBT
from mbt_fast.parallel import tensor_parallel

CASES = {  # lengths, overrides
    "default": ({}, {}),
    "missing modalities": (LENGTHS, {}),
    "shared encoder": (LENGTHS, {"share_encoder": True}),
    "vanilla": (LENGTHS, {"fusion": "vanilla"}),
    "joint": (LENGTHS, {"fusion": "vanilla", "share_encoder": True}),
    "in order": ({}, {"update_order": ("spectrogram", "rgb")}),
}
WORLDS = [*((2, case) for case in CASES), (4, "default"), (4, "missing modalities")]


def train(lengths, overrides):
    model = tensor_parallel(model_of(**overrides), mesh_of(tp=torch.distributed.get_world_size()))
    optimizer = optimizer_of(model)
    losses, norms = [], []
    for step in range(STEPS):
        inputs, targets = batch_of(step=step)
        optimizer.zero_grad()
        loss = official_loss(model, inputs, lengths, targets)
        loss.backward()
        norms.append(norm_of(model))
        losses.append(loss.detach())
        optimizer.step()
    grads = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return losses, norms, grads, {name: whole(x) for name, x in model.state_dict().items()}


def norm_of(model):
    norms = [whole(p.grad.square().sum()) for p in model.parameters() if p.grad is not None]
    return torch.stack(norms).sum().sqrt()


def train_all(cases):
    return {case: train(*CASES[case]) for case in cases}


@cache
def runs(world):
    """Of all cases with so many ranks: starting processes takes longer than a case."""
    return run(world, train_all, [case for size, case in WORLDS if size == world])


@pytest.mark.parametrize(("world", "case"), WORLDS)
def test_a_run_is_that_of_one_process(world, case):
    lengths, overrides = CASES[case]
    losses, norms, grads, weights = train_alone(lengths, max_norm=math.inf, **overrides)
    grads = {name: grad for name, grad in grads.items() if grad is not None}
    assert_same_run([found[case] for found in runs(world)], (losses, norms, grads, weights))


@pytest.fixture
def one_rank():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_what_cannot_be_split_is_refused(one_rank):
    with pytest.raises(ValueError, match="dimension 'tp', got dp"):
        tensor_parallel(model_of(), mesh_of(dp=1))
    with pytest.raises(ValueError, match=r"dropout .* must be 0"):
        tensor_parallel(model_of(dropout=0.1), mesh_of(tp=1))


def test_ranks_drew_the_same_weights_for_different_heads(one_rank):
    with pytest.raises(ValueError, match=r"must have weights: .* got one on the meta device"):
        tensor_parallel(model_of().to("meta"), mesh_of(tp=1))


def test_torch_without_the_private_placement_is_named(one_rank, monkeypatch):
    monkeypatch.delattr("torch.distributed.tensor.placement_types._StridedShard")
    with pytest.raises(ImportError, match=r"must find _StridedShard .* got torch \d"):
        tensor_parallel(model_of(), mesh_of(tp=1))


UNEVEN = {"num_heads": 1, "mlp_dim": 33}


def split_unevenly():
    for name, value in UNEVEN.items():
        message = f"^ranks along 'tp' must divide {name} = {value}, got 2$"
        with pytest.raises(ValueError, match=message):
            tensor_parallel(model_of(**{name: value}), mesh_of(tp=2))


def test_heads_and_channels_that_do_not_divide_are_refused():
    run(2, split_unevenly)


def saved(folder):
    model = tensor_parallel(model_of(), mesh_of(tp=2))
    with pytest.raises(CheckpointError, match=r"must be whole, and .*qkv\.weight is spread over"):
        model.save_pretrained(folder)
    weights = {name: whole(x) for name, x in model.state_dict().items()}
    if torch.distributed.get_rank() == 0:
        save_pretrained(folder, model.config, weights)


def test_shares_are_not_saved_as_a_model(tmp_path):
    """The writer failed with "invalid python storage"."""
    run(2, saved, tmp_path)
    expected = model_of().state_dict()
    for name, value in MBT.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(value, expected[name]), name
