"""Modality, data and tensor parallelism in one mesh: the run is that of one process."""

from functools import cache, partial

import pytest
import torch
import torch.distributed as dist
from modality_cases import (
    STEPS,
    assert_same,
    assert_same_run,
    batch_of,
    example_losses,
    int32,
    loss_of_mean,
    mesh_of,
    model_of,
    official_loss,
    optimizer_of,
    part_of,
    train_alone,
    whole,
)
from ranks import run
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from mbt_fast.parallel import (
    average_gradients,
    clip_grad_norm_,
    modality_parallel,
    sum_gradients,
    tensor_parallel,
)

# The clips of the first data-parallel rank have no video, the second of them not even sound.
LENGTHS = {"rgb": int32(0, 0, 4, 3), "spectrogram": int32(9, 0, 0, 5)}
MAX_NORM = 0.5
pytestmark = pytest.mark.slow


def official_part(model, inputs, lengths, targets):
    """The official loss, by the modality of the rank."""
    own = {model.modality: inputs[model.modality]}
    logits = model.forward_modalities(own, lengths)[model.modality]
    return model.mean_of_modalities(example_losses(logits, targets), lengths).mean()


def train(model, wrapped, loss_of, part=0, data_parallel=None, complete=lambda: None):
    """One rank's steps, with its half of the clips under data parallelism.

    ``complete`` makes the gradients those of all ranks, where the backward does not.
    """
    optimizer, parts = optimizer_of(model), 2 if data_parallel else 1
    losses, norms = [], []
    for step in range(STEPS):
        inputs, targets = batch_of(step=step)
        inputs, lengths = (part_of(x, part, parts) for x in (inputs, LENGTHS))
        optimizer.zero_grad()
        loss = loss_of(wrapped, inputs, lengths, targets.chunk(parts)[part])
        loss.backward()
        if hasattr(model, "group"):
            sum_gradients(model)
        complete()
        norms.append(clip_grad_norm_(model, MAX_NORM))
        losses.append(loss.detach())
        optimizer.step()
    if data_parallel:
        losses = mean_over(losses, data_parallel)
    return losses, norms


def with_tensors(model, losses, norms):
    """What ``assert_same_run`` takes of a rank."""
    grads = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return losses, norms, grads, {name: whole(x) for name, x in model.state_dict().items()}


def mean_over(losses, group):
    total = torch.stack(losses)
    dist.all_reduce(total, group=group)
    return list(total / dist.get_world_size(group))


def shard(model, mesh):
    """FSDP2: a unit for each fusion layer."""
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "forward_modalities")


def modality_in_ddp():
    mesh = mesh_of(dp=2, modality=2)
    model, group = modality_parallel(model_of(), mesh), mesh.get_group("dp")
    wrapped = DistributedDataParallel(model, process_group=group)
    run = train(model, wrapped, loss_of_mean, mesh.get_local_rank("dp"), group)
    return with_tensors(model, *run)


def modality_in_fsdp():
    mesh = mesh_of(dp=2, modality=2)
    model = modality_parallel(model_of(), mesh)
    shard(model, mesh["dp"])
    part, group = mesh.get_local_rank("dp"), mesh.get_group("dp")
    return with_tensors(model, *train(model, model, official_part, part, group))


def modality_and_tensor():
    mesh = mesh_of(modality=2, tp=2)
    model = tensor_parallel(modality_parallel(model_of(), mesh), mesh)
    return with_tensors(model, *train(model, model, official_part))


def tensor_in_data_parallel():
    mesh = mesh_of(dp=2, tp=2)
    model, group = tensor_parallel(model_of(), mesh), mesh.get_group("dp")
    complete = partial(average_gradients, model, group)
    part = mesh.get_local_rank("dp")
    return with_tensors(model, *train(model, model, official_loss, part, group, complete))


def tensor_in_fsdp():
    """Its state dict is refused, so gradients and weights are this rank's shares."""
    mesh = mesh_of(dp=2, tp=2)
    model = tensor_parallel(model_of(), mesh)
    shard(model, mesh["dp"])
    part = mesh.get_local_rank("dp")
    losses, norms = train(model, model, official_loss, part, mesh.get_group("dp"))
    with pytest.raises(NotImplementedError, match=r"qkv\.weight must be sharded along 'tp' alone"):
        model.state_dict()
    named = dict(model.named_parameters())
    grads = {name: p.grad.to_local() for name, p in named.items()}
    return losses, norms, grads, {name: p.detach().to_local() for name, p in named.items()}


WAYS = {
    "modality in DDP": (modality_in_ddp, loss_of_mean),
    "modality in FSDP2": (modality_in_fsdp, official_loss),
    "modality and tensor": (modality_and_tensor, official_loss),
    "tensor in data parallelism": (tensor_in_data_parallel, official_loss),
}


def train_all():
    return {name: way() for name, (way, _) in WAYS.items()} | {"tensor in FSDP2": tensor_in_fsdp()}


@cache
def runs():
    """Of all ways: starting processes takes longer than the ways."""
    return run(4, train_all)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_that_of_one_process(way):
    _, loss_of = WAYS[way]
    assert_same_run(
        [found[way] for found in runs()], train_alone(LENGTHS, loss_of, max_norm=MAX_NORM)
    )


def share_of(name, tensor, dp, tp):
    """What a rank has of a whole tensor: split by heads or hidden channels, then by rows."""
    if ".qkv." in name:
        tensor = torch.cat([part.chunk(2)[tp] for part in tensor.chunk(3)])
    elif ".fc1." in name:
        tensor = tensor.chunk(2)[tp]
    elif name.endswith(("proj.weight", "fc2.weight")) and name.startswith("blocks"):
        tensor = tensor.chunk(2, dim=1)[tp]
    rows = tensor.split((len(tensor) + 1) // 2)
    return rows[dp] if dp < len(rows) else tensor[:0]


def test_tensor_parallelism_in_fsdp_trains_but_is_not_saved():
    """Rows of ``qkv`` came out of ``full_tensor`` in the wrong order."""
    losses, norms, *expected = train_alone(LENGTHS, official_loss, max_norm=MAX_NORM)
    for rank, found in enumerate(each["tensor in FSDP2"] for each in runs()):
        assert_same(found[0], losses, "loss")
        assert_same(found[1], norms, "norm")
        for shares, tensors in zip(found[2:], expected, strict=True):
            assert shares.keys() == tensors.keys()
            for name, share in shares.items():
                wanted = share_of(name, tensors[name], *divmod(rank, 2))
                assert share.shape == wanted.shape, name
                if len(share):
                    assert_same([share], [wanted], name)
