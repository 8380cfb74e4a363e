"""What ranks send: the closed forms are what is counted, and modalities exchange slots alone."""

from collections import Counter
from functools import cache

import pytest
import torch
from collectives import Collectives
from modality_cases import (
    CLIPS,
    LENGTHS,
    batch_of,
    example_losses,
    mesh_of,
    model_of,
    official_loss,
    part_of,
)
from ranks import run
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from mbt_fast.parallel import modality_parallel, sum_gradients, tensor_parallel
from mbt_fast.parallel.traffic import Collective, traffic

WIDTH = 4  # bytes of float32
SLOTS = WIDTH * CLIPS * (2 * 16 + 1)  # 2 slots of 16 channels, and presence
EXCHANGES = 2  # layers 1, 2 and 3 are fused, and nobody reads the slots of the last


def counted(action):
    """(kind, bytes) of all collectives, and the result."""
    with Collectives() as seen:
        result = action()
    return seen.found, result


def modality_step(plan, lengths):
    """Collectives of the forward, the loss, the backward, and between backward and step."""
    mesh = mesh_of(modality=sum(plan.values()))
    model = modality_parallel(model_of().float(), mesh, plan)
    inputs, targets = batch_of()
    part, parts = model.group.part, model.group.parts
    inputs, lengths = (part_of(x, part, parts) for x in (inputs, lengths))
    inputs, targets = {m: x.float() for m, x in inputs.items()}, targets.float().chunk(parts)[part]

    model.forward_modalities(inputs, lengths)  # the first one looks whether batches fit

    def losses():
        logits = model.forward_modalities(inputs, lengths)[model.modality]
        return example_losses(logits, targets)

    forward, own = counted(losses)
    met, total = counted(lambda: model.mean_of_modalities(own, lengths).mean())
    backward, _ = counted(total.backward)
    summed, _ = counted(lambda: sum_gradients(model))
    return forward, met, backward, summed


@pytest.mark.parametrize("lengths", [{}, LENGTHS], ids=["present", "missing modalities"])
@pytest.mark.parametrize("video", [1, 2])
def test_modalities_exchange_slots_alone(video, lengths):
    plan = {"rgb": video, "spectrogram": 1}
    video_rank, *_ = ranks = run(1 + video, modality_step, plan, lengths)
    slots = Counter({("all_reduce", SLOTS): EXCHANGES})
    for forward, _, backward, _ in ranks:
        assert forward == slots
        assert backward == slots
    assert sum(video_rank, Counter()) == closed_form("modality", plan)


def debugged_step():
    """What ``CommDebugMode`` counts of a forward, and of its backward."""
    model = modality_parallel(model_of(), mesh_of(modality=2))
    model(batch_of()[0])  # the first one looks whether batches fit
    with CommDebugMode() as forward:
        (logits,) = model.forward_modalities(batch_of()[0], LENGTHS).values()
    with CommDebugMode() as backward:
        logits.sum().backward()
    return [{str(op): n for op, n in m.get_comm_counts().items()} for m in (forward, backward)]


def test_comm_debug_mode_counts_one_sum_for_each_exchange():
    for forward, backward in run(2, debugged_step):
        assert forward == backward == {"c10d.allreduce_": EXCHANGES}


def closed_form(way, plan=None, width=WIDTH):
    ranks, found = sum(plan.values()) if plan else 2, Counter()
    for collective in traffic(model_of().config, ranks, CLIPS, width=width, plan=plan)[way]:
        found[collective.kind, collective.size] += collective.calls
    return found


class ByModality(nn.Module):
    """DDP takes part in ``forward`` alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs, lengths):
        return self.model.forward_modalities(inputs, lengths)


def replicated(model):
    wrapped = DistributedDataParallel(ByModality(model))
    wrapped.forward_modalities = wrapped.forward
    return wrapped


def sharded(model):
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    register_fsdp_forward_method(model, "forward_modalities")
    return model


def split(model):
    return tensor_parallel(model, mesh_of(tp=2))


WAYS = {"DDP": replicated, "FSDP2": sharded, "tensor": split}


def steps_of(way, narrow):
    """The collectives of the third step: DDP arranges its buckets in the first two."""
    model = WAYS[way](model_of().float())
    inputs, targets = batch_of()
    inputs = {m: x.float() for m, x in inputs.items()}
    if way != "tensor":
        inputs = part_of(inputs, torch.distributed.get_rank(), 2)
        targets = targets.chunk(2)[0]

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = official_loss(model, inputs, {}, targets.float())
        loss.backward()

    for _ in range(3):
        found, _ = counted(step)
    return found


CASES = [*((way, False) for way in WAYS), ("tensor", True)]


def count_all():
    return [steps_of(way, narrow) for way, narrow in CASES]


@cache
def counts():
    return run(2, count_all)


@pytest.mark.parametrize(("way", "narrow"), CASES)
def test_closed_forms_are_what_is_counted(way, narrow):
    """Under autocast the gradients of streams in tensor parallelism were taken for narrow."""
    for found in counts():
        assert found[CASES.index((way, narrow))] == closed_form(way, width=2 if narrow else WIDTH)


def test_what_a_ring_sends():
    whole = 1200
    assert Collective("all_reduce", "", whole, 4, 3).sent == 3 * 2 * whole * 3 / 4
    assert Collective("all_gather", "", whole, 4).sent == whole * 3 / 4
    assert Collective("send", "", whole, 4, 3).sent == 3 * whole
