"""A modality that is left out on one rank, while the others wait for its gradients."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def check_left_out(inputs: Mapping[str, Tensor], parts: Mapping[str, Iterable[nn.Module]]) -> None:
    """Refuse a call that ``DistributedDataParallel`` would not survive.

    It reduces the gradients of all parameters, whether this rank has used them or not, and waits
    until it has them all. Which modalities the other ranks were given is not known here.

    Args:
        inputs: The modalities of this call.
        parts: For every modality, the modules that it alone passes through.

    Raises:
        ValueError: A modality with trainable parameters is left out, in training under
            ``DistributedDataParallel`` that does not look for unused parameters.
    """
    if len(inputs) == len(parts) or torch.compiler.is_compiling() or not _waits_for_all():
        return
    for modality, modules in parts.items():
        trained = any(p.requires_grad for module in modules for p in module.parameters())
        if modality not in inputs and trained:
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
