"""Modality parallelism on two to four processes: losses, gradients and weights are those of one."""

import math
from functools import cache

import pytest
import torch
from modality_cases import (
    LENGTHS,
    STEPS,
    assert_same_run,
    batch_of,
    example_losses,
    int32,
    loss_of_mean,
    mesh_of,
    model_of,
    optimizer_of,
    part_of,
    train_alone,
)
from ranks import run

from mbt_fast import MBTConfig
from mbt_fast.models import MBT
from mbt_fast.parallel import clip_grad_norm_, modality_parallel, sum_gradients

THREE = {"modalities": ("rgb", "spectrogram", "flow"), "classifier": "gap_per_modality"}
THREE_LENGTHS = {"rgb": int32(8, 0, 3, 0), "flow": int32(0, 4, 2, 0)}


def train(world, plan, lengths, by_mean, max_norm, overrides):
    """What a rank does: the steps of ``train_alone``, with its modality and its clips."""
    model = modality_parallel(model_of(**overrides), mesh_of(modality=world), plan)
    optimizer, group = optimizer_of(model), model.group
    losses, norms = [], []
    for step in range(STEPS):
        inputs, targets = batch_of(model.config.modalities, step)
        inputs, own_lengths = (part_of(x, group.part, group.parts) for x in (inputs, lengths))
        own_targets = targets.chunk(group.parts)[group.part]
        optimizer.zero_grad()
        if by_mean:
            loss = loss_of_mean(model, inputs, own_lengths, targets)
        else:
            own = {model.modality: inputs[model.modality]}
            logits = model.forward_modalities(own, own_lengths)[model.modality]
            own_losses = example_losses(logits, own_targets)
            loss = model.mean_of_modalities(own_losses, own_lengths).mean()
        loss.backward()
        sum_gradients(model)
        norms.append(clip_grad_norm_(model, max_norm))
        losses.append(loss.detach())
        optimizer.step()
    return losses, norms, {n: p.grad for n, p in model.named_parameters()}, model.state_dict()


CASES = {  # plan, lengths, loss of the mean logits, largest norm, overrides
    "official loss": (None, {}, False, math.inf, {}),
    "loss of the mean logits": (None, {}, True, math.inf, {}),
    "clipped": (None, {}, False, 0.5, {}),
    "missing modalities": (None, LENGTHS, False, 0.5, {}),
    "missing, mean logits": (None, LENGTHS, True, math.inf, {}),
    "absent everywhere": (None, {"rgb": int32(0, 0, 0, 0)}, False, math.inf, {}),
    "shared encoder": (None, LENGTHS, False, 0.5, {"share_encoder": True}),
    "late fusion": (None, LENGTHS, False, 0.5, {"fusion_layer": 4}),
    "no slots": (None, {}, False, math.inf, {"n_bottlenecks": 0}),
    "three modalities": (None, THREE_LENGTHS, False, 0.5, THREE),
    "two ranks for video": ({"rgb": 2, "spectrogram": 1}, LENGTHS, False, 0.5, {}),
    "two ranks, mean logits": ({"spectrogram": 1, "rgb": 2}, LENGTHS, True, 0.5, {}),
    "two ranks each": ({"rgb": 2, "spectrogram": 2}, LENGTHS, False, 0.5, {}),
}


def world_of(case):
    plan, *_, overrides = CASES[case]
    return sum(plan.values()) if plan else len(overrides.get("modalities", "ab"))


def train_all(world):
    return {case: train(world, *CASES[case]) for case in CASES if world_of(case) == world}


@cache
def runs(world):
    """Of all cases with so many ranks: starting processes takes longer than the cases."""
    return run(world, train_all, world, seconds=60)


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_that_of_one_process(case):
    _, lengths, by_mean, max_norm, overrides = CASES[case]
    options = {"loss_of": loss_of_mean} if by_mean else {}
    alone = train_alone(lengths, max_norm=max_norm, **options, **overrides)
    assert_same_run([found[case] for found in runs(world_of(case))], alone)


def frozen_on_one_rank():
    """The video tower and what is shared are frozen: rank 0 has no gradient of its own."""
    model = model_of()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".spectrogram." in name)
    model = modality_parallel(model, mesh_of(modality=2))
    inputs, targets = batch_of()
    loss_of_mean(model, inputs, {}, targets).backward()
    sum_gradients(model)
    return {name: p.grad for name, p in model.named_parameters()}


def test_a_frozen_modality_left_the_others_waiting_in_the_backward():
    video, sound = run(2, frozen_on_one_rank)
    model = model_of()
    inputs, targets = batch_of()
    loss_of_mean(model, inputs, {}, targets).backward()
    assert not any(grad is not None for grad in video.values())
    for name, grad in sound.items():
        if ".spectrogram." in name:
            assert (grad - model.get_parameter(name).grad).abs().max() <= 1e-12, name


def accumulated():
    model = modality_parallel(model_of(), mesh_of(modality=2))
    inputs, targets = batch_of()
    for part in range(2):
        own = part_of(inputs, part, 2)
        (loss_of_mean(model, own, {}, targets.chunk(2)[part]) / 2).backward()
    sum_gradients(model)
    return {name: p.grad for name, p in model.named_parameters()}


def test_gradients_of_micro_batches_are_summed_once():
    *_, expected, _ = train_alone({}, loss_of_mean, steps=1)
    for found in run(2, accumulated):
        for name, grad in found.items():
            assert (grad - expected[name]).abs().max() <= 1e-12, name


def silent_first_step():
    """The second rank alone has had a backward of the head."""
    model = modality_parallel(model_of(), mesh_of(modality=2))
    if model.modality == "spectrogram":
        model.head.weight.grad = torch.ones_like(model.head.weight)
    sum_gradients(model)
    return model.head.weight.grad, model.head.bias.grad


def test_a_rank_without_a_gradient_gets_the_sum():
    for weight, bias in run(2, silent_first_step):
        assert (weight == 1).all()
        assert bias is None


def uneven():
    model = modality_parallel(model_of(), mesh_of(modality=3), {"rgb": 2, "spectrogram": 1})
    inputs, _ = batch_of()  # the whole batch on all ranks
    message = "as many clips of every modality, got rgb: 2 x 4, spectrogram: 1 x 4"
    with pytest.raises(ValueError, match=message):
        model(inputs)


def test_batches_that_differ_were_mixed_up():
    run(3, uneven)


EXECUTIONS = {"cheap last layer": {"cls_only": True}, "recompute all": {"recompute": "mlp"}}


def executed(options):
    model = model_of().set_execution(**options)
    model = modality_parallel(model, mesh_of(modality=2))
    inputs, targets = batch_of()
    loss_of_mean(model, inputs, LENGTHS, targets).backward()
    sum_gradients(model)
    return {name: p.grad for name, p in model.named_parameters()}


def execute_all():
    return {name: executed(options) for name, options in EXECUTIONS.items()}


def test_options_of_execution_change_no_gradient():
    *_, expected, _ = train_alone(LENGTHS, loss_of_mean, steps=1)
    for rank in run(2, execute_all):
        for option, found in rank.items():
            for name, grad in found.items():
                assert (grad - expected[name]).abs().max() <= 1e-12, f"{option}: {name}"


def evaluated(lengths):
    model = modality_parallel(model_of(test_with_bottlenecks=False).eval(), mesh_of(modality=2))
    inputs, _ = batch_of()
    with torch.inference_mode():
        return model(inputs, lengths)


def test_evaluation_without_bottlenecks():
    model = model_of(test_with_bottlenecks=False).eval()
    expected = model(batch_of()[0], LENGTHS).detach()
    for logits in run(2, evaluated, LENGTHS):
        assert (logits - expected).abs().max() <= 1e-12


@pytest.fixture
def one_rank():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


REFUSED = {
    "fusion .* every stream attends": {"fusion": "vanilla"},
    "update_order .* wait for one another": {"update_order": ("rgb", "spectrogram")},
    "classifier .* tokens of all": {"classifier": "gap"},
    "mesh must have 2 ranks along 'modality'": {},
}


@pytest.mark.parametrize(("message", "overrides"), REFUSED.items())
def test_models_that_do_not_fit_are_refused(one_rank, message, overrides):
    with pytest.raises(ValueError, match=message):
        modality_parallel(model_of(**overrides), mesh_of(modality=1))


def test_meshes_and_plans_that_do_not_fit_are_refused(one_rank):
    with pytest.raises(ValueError, match="dimension 'modality', got dp"):
        modality_parallel(model_of(), mesh_of(dp=1))
    with pytest.raises(ValueError, match=r"plan must name every modality .* got rgb"):
        modality_parallel(model_of(), mesh_of(modality=1), {"rgb": 1})
    with pytest.raises(ValueError, match=r"plan\['rgb'\] must be at least 1 rank, got 0"):
        modality_parallel(model_of(), mesh_of(modality=1), {"rgb": 0, "spectrogram": 1})


def test_a_rank_without_its_input_is_told_so(one_rank):
    config = MBTConfig(**{**model_of().config.to_dict(), "modalities": ("rgb",)})
    model = modality_parallel(MBT(config), mesh_of(modality=1))
    with pytest.raises(ValueError, match="inputs must name some of rgb, got 'sound'"):
        model({"sound": torch.zeros(1)})
