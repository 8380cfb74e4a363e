"""What a model whose parameters are on several ranks needs between backward and step."""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mbt_fast.models import MBT
from mbt_fast.ops.streams import wide_dtype
from mbt_fast.parallel.modality import ModalityParallelMBT
from mbt_fast.parallel.modality_group import local


def sum_gradients(model: ModalityParallelMBT) -> None:
    """Sum the gradients of parameters that several ranks of the group have, in place.

    Call it on all ranks, once for each step, after the last backward of the step and before
    clipping. A rank without a gradient adds nothing; without any on all ranks there is none.

    Args:
        model: The part, not what data parallelism wraps around it.
    """
    _sum(list(model.shared_parameters()), model.group.ranks)
    if model.group.replicas is not None:
        _sum(list(model.own_parameters()), model.group.replicas)


def average_gradients(model: MBT, ranks: dist.ProcessGroup) -> None:
    """Make the gradients of data-parallel ranks their mean, in place.

    For tensor parallelism, whose parameters ``DistributedDataParallel`` does not take. All ranks
    must begin with the same weights. Call it on all ranks,
    once for each step, after the last backward and before clipping. A rank without a gradient
    counts as zero; without any on all ranks there is none.

    Args:
        model: The model, or this rank's part of it.
        ranks: The ranks that have the same parameters: ``mesh.get_group("dp")``.
    """
    parameters = list(model.parameters())
    _sum(parameters, ranks)
    for parameter in parameters:
        if parameter.grad is not None:
            local(parameter.grad).div_(dist.get_world_size(ranks))


def clip_grad_norm_(model: MBT, max_norm: float) -> Tensor:
    """Scale all gradients down to a joint norm over the whole model, each parameter counted once.

    Call it on all ranks, in modality parallelism after ``sum_gradients``. Gradients may be sharded,
    by FSDP2 or by tensor parallelism, in different meshes, which torch's own function refuses.

    Args:
        model: The model, or this rank's part of it; not what data parallelism wraps around it.
        max_norm: The largest L2 norm; ``inf`` only measures.

    Returns:
        The norm before, a scalar on the model's device, the same on all ranks.
    """
    if isinstance(model, ModalityParallelMBT):
        own = _squared_norm(list(model.own_parameters())) / model.group.parts
        dist.all_reduce(own, group=model.group.ranks)
        norm = (own + _squared_norm(list(model.shared_parameters()))).sqrt()
    else:
        norm = _squared_norm(list(model.parameters())).sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1)  # as torch.nn.utils.clip_grad_norm_ does
    for parameter in model.parameters():
        if parameter.grad is not None:
            grad = local(parameter.grad)
            grad.mul_(scale.to(grad.dtype))
    return norm


@torch.no_grad()
def _sum(parameters: Sequence[nn.Parameter], ranks: dist.ProcessGroup) -> None:
    """In one collective, which also counts who has a gradient of each."""
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    parts = [local(grad) for grad in grads]
    has_grad = [p.grad is not None for p in trained]
    counts = torch.tensor(has_grad, dtype=parts[0].dtype, device=parts[0].device)
    total = torch.cat([counts, *(part.flatten() for part in parts)])
    dist.all_reduce(total, group=ranks)
    found, *sums = total.split([len(trained), *(part.numel() for part in parts)])
    for part, value in zip(parts, sums, strict=True):
        part.copy_(value.view_as(part))
    if not all(has_grad):  # on a GPU the counts are waited for here alone
        for parameter, grad, count in zip(trained, grads, found.tolist(), strict=True):
            parameter.grad = grad if count else None


def _squared_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Of whole gradients, in float32 or wider; those of one mesh are reduced together."""
    by_mesh: dict[object, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            by_mesh[getattr(parameter.grad, "device_mesh", None)].append(parameter.grad)
    norms = [nn.utils.get_total_norm(grads) for grads in by_mesh.values()]
    first = parameters[0]
    total = torch.zeros((), dtype=wide_dtype(first.dtype), device=first.device)
    for norm in norms:
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        total = total + whole.to(total.dtype).square()
    return total
