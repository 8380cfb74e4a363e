"""Weights and optimizer states of a model whose modalities are spread over ranks."""

import torch
from modality_cases import (
    LENGTHS,
    STEPS,
    batch_of,
    loss_of_mean,
    mesh_of,
    model_of,
    optimizer_of,
    train_alone,
)
from ranks import run

from mbt_fast.models import MBT
from mbt_fast.parallel import modality_parallel, sum_gradients


def saved(folder):
    torch.manual_seed(torch.distributed.get_rank())  # shared parameters come from the first
    config = model_of().config
    model = modality_parallel(MBT(config), mesh_of(modality=3), {"rgb": 2, "spectrogram": 1})
    model.save_pretrained(folder)
    return model.state_dict()


def test_what_is_saved_is_an_ordinary_model(tmp_path):
    ranks = run(3, saved, tmp_path)
    model = MBT.from_pretrained(tmp_path)
    for state in ranks:
        for name, value in state.items():
            assert torch.equal(value, model.state_dict()[name]), name


def drawn_late():
    torch.manual_seed(torch.distributed.get_rank())
    with torch.device("meta"):
        model = MBT(model_of().config)
    part = modality_parallel(model, mesh_of(modality=3), {"rgb": 2, "spectrogram": 1})
    part.to_empty(device="cpu").reset_parameters()
    return part.modality, part.state_dict()


def test_a_part_from_the_meta_device_has_the_weights_of_the_others():
    (_, first), (_, twin), (modality, other) = run(3, drawn_late)
    assert modality == "spectrogram"
    for name, value in first.items():
        assert torch.equal(value, twin[name]), name
    shared = first.keys() & other.keys()
    assert {"bottleneck_tokens", "norm.weight", "head.bias"} <= shared
    assert all(torch.equal(first[name], other[name]) for name in shared)


def begun():
    """Two steps on two ranks: weights and momenta of the whole model."""
    model = modality_parallel(model_of(), mesh_of(modality=2))
    optimizer = optimizer_of(model)
    for step in range(2):
        inputs, targets = batch_of(step=step)
        optimizer.zero_grad()
        loss_of_mean(model, inputs, LENGTHS, targets).backward()
        sum_gradients(model)
        optimizer.step()
    return model.whole_state_dict(), model.whole_optimizer_state(optimizer)


def test_a_run_goes_on_in_one_process():
    (weights, momenta), nothing = run(2, begun)
    assert nothing == ({}, {})
    model = model_of()
    model.load_state_dict(weights)
    optimizer = optimizer_of(model)
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = momenta[name]
    for step in range(2, STEPS):
        inputs, targets = batch_of(step=step)
        optimizer.zero_grad()
        loss_of_mean(model, inputs, LENGTHS, targets).backward()
        optimizer.step()
    *_, expected = train_alone(LENGTHS, loss_of_mean)
    for name, value in model.state_dict().items():
        assert (value - expected[name]).abs().max() <= 1e-12, name
