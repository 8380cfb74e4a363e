"""A modality that is left out on one rank, while the others wait for its gradients."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def check_left_out(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    parameters: Mapping[str, Iterable[nn.Parameter]],
) -> None:
    """Refuse a call that ``DistributedDataParallel`` would not survive.

    It reduces the gradients of all parameters, whether this rank has used them or not, and waits
    until it has them all. Which modalities the other ranks were given is not known here.

    Args:
        model: What is called. In evaluation mode, as a teacher inside of another model is, it may
            leave modalities out.
        inputs: The modalities of this call.
        parameters: For every modality, those that it alone uses.

    Raises:
        ValueError: A modality with trainable parameters is left out, in training mode, under
            ``DistributedDataParallel`` that does not look for unused parameters.
    """
    if len(inputs) == len(parameters) or torch.compiler.is_compiling():
        return
    if not model.training or not _waits_for_all():
        return
    for modality, own in parameters.items():
        if modality not in inputs and any(p.requires_grad for p in own):
            raise ValueError(
                f"inputs must hold {modality!r} on every rank of DistributedDataParallel, which "
                f"waits for its gradients; got {', '.join(inputs)}. Where it is absent, give "
                "zeros, and 0 in lengths"
            )


def _waits_for_all() -> bool:
    """Whether this is a forward under a data parallel wrapper that needs every gradient."""
    if not torch.is_grad_enabled() or not torch.distributed.is_available():
        return False
    wrapper = nn.parallel.DistributedDataParallel._get_active_ddp_module()
    return (
        wrapper is not None
        and wrapper.require_backward_grad_sync
        and not wrapper.find_unused_parameters
        and not wrapper.static_graph
    )
