"""Every rank has the model and a share of the batch: replicated (DDP) or sharded (FSDP2).

The forward that the ranks take together is ``forward_modalities``, of which the loss is made.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mbt_fast.errors import InputError
from mbt_fast.models import MBT
from mbt_fast.models.saved import Model
from mbt_fast.parallel.ranks import Ranks

Inputs = Mapping[str, Tensor]
Logits = dict[str, Tensor]


class Alone:
    """A process without others: gradients are its own."""

    def __init__(self, model: Model) -> None:
        """Keep the model."""
        self._model = model

    def __call__(self, inputs: Inputs, lengths: Inputs | None) -> Logits:
        """Logits per modality, as ``forward_modalities`` gives them."""
        return self._model.forward_modalities(inputs, lengths)

    def part(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a part of the clips; ``last`` if none is left."""
        return nullcontext()

    def complete(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make gradients those of all ranks, where the backward has not done so."""


class Replicated(Alone):
    """The model on every rank: DDP means the gradients while the backward runs.

    Args:
        model: With the same weights on every rank.
        ranks: This process among the others.
        apart: Gradients are this rank's own until ``complete``, for each group of clips clips its
            gradient by itself.
    """

    def __init__(self, model: Model, ranks: Ranks, apart: bool = False) -> None:
        """Wrap the model."""
        super().__init__(model)
        self._ranks, self._apart = ranks, apart
        device = torch.device(ranks.device)
        ids = [device] if device.type == "cuda" else None
        self._wrapped = DistributedDataParallel(
            _ByModality(model),
            device_ids=ids,
            gradient_as_bucket_view=True,
            find_unused_parameters=_has_idle_slots(model),
        )

    def __call__(self, inputs: Inputs, lengths: Inputs | None) -> Logits:
        """See ``Alone``."""
        return self._wrapped(inputs, lengths)

    def part(self, last: bool) -> AbstractContextManager[Any]:
        """See ``Alone``."""
        return nullcontext() if last and not self._apart else self._wrapped.no_sync()

    @torch.no_grad()
    def complete(self, parameters: Iterable[nn.Parameter]) -> None:
        """See ``Alone``. All ranks must have gradients of the same parameters."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not self._apart or not gradients:
            return
        joined = self._ranks.total(torch.cat([g.flatten() for g in gradients]))
        parts = (joined / self._ranks.world).split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


class Sharded(Alone):
    """A share of every parameter on each rank: FSDP2 gathers a fusion layer when it runs.

    Args:
        model: With the same weights on every rank. Its parameters become shares of them.
        ranks: This process among the others.
        dtype: Weights are gathered in it, and multiplied; gradients are summed in their own.

    Raises:
        InputError: This torch cannot shard a fusion layer.
    """

    def __init__(self, model: Model, ranks: Ranks, dtype: torch.dtype) -> None:
        """Shard the model in place."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (
            MixedPrecisionPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        super().__init__(model)
        mesh = init_device_mesh(torch.device(ranks.device).type, (ranks.world,))
        policy = MixedPrecisionPolicy()
        if dtype is not torch.float32:
            # The streams between layers stay as wide as autocast has them.
            policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        try:
            for layer in model.layers if isinstance(model, MBT) else []:
                fully_shard(layer, mesh=mesh, mp_policy=policy)
        except ValueError as error:
            raise InputError(
                'train.parallel must be "ddp" with this torch, whose FSDP2 shards no fusion layer '
                f"(2.11 does not, 2.13 does), got torch {torch.__version__}"
            ) from error
        self._sharded = fully_shard(model, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(model, "forward_modalities")

    def part(self, last: bool) -> AbstractContextManager[Any]:
        """See ``Alone``."""
        self._sharded.set_requires_gradient_sync(last)
        return nullcontext()


def wrap(
    model: Model,
    ranks: Ranks,
    how: str = "ddp",
    dtype: torch.dtype = torch.float32,
    *,
    apart: bool = False,
) -> Alone:
    """How a model is trained by the ranks.

    Args:
        model: On its device, with the same weights on every rank. Sharding changes it in place, so
            an optimizer is made after it.
        ranks: This process among the others.
        how: ``"ddp"`` or ``"fsdp"``.
        dtype: Of autocast.
        apart: As in ``Replicated``, which alone can do it.

    Raises:
        InputError: It cannot be done.
    """
    if ranks.world == 1:
        return Alone(model)
    if how == "fsdp":
        return Sharded(model, ranks, dtype)
    return Replicated(model, ranks, apart)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each rank has a share; all ranks must ask for it."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def share_like(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of whole tensors, which every rank has, this rank's shares.

    Args:
        tensors: By name.
        own: Shares, or whole tensors, by the same names: what they should be like.
    """
    return {name: _share_like(tensor, own.get(name)) for name, tensor in tensors.items()}


def _share_like(tensor: Tensor, own: Tensor | None) -> Tensor:
    if not hasattr(own, "full_tensor"):  # not every torch has the module of those that do
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(own, DTensor) or tensor.shape != own.shape:
        return tensor
    tensor = tensor.to(own.device)
    return distribute_tensor(tensor, own.device_mesh, own.placements, src_data_rank=None)


def _has_idle_slots(model: Model) -> bool:
    """Whether no layer fuses, so that slots have no gradient, for which DDP would wait."""
    if not isinstance(model, MBT) or model.bottleneck_tokens is None:
        return False
    return model.config.fusion_layer == model.config.num_layers


class _ByModality(nn.Module):
    """DDP takes part in ``forward`` alone."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs, lengths: Inputs | None) -> Logits:
        return self.model.forward_modalities(inputs, lengths)


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank has a share of the parameters, so that all must call the model together."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
