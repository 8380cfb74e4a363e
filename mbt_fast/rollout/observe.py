"""What rollout knows of a model that has run, whatever its kind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mbt_fast.models.head import mean_of_present
from mbt_fast.rollout.steps import Step

Target = int | Tensor


@dataclass(frozen=True)
class Grid:
    """How the own tokens of a stream lie on its input.

    Args:
        shape: Patches along each axis of the input.
        extra: Tokens before the patches, CLS and its like.
        frames: Of a video whose frames are embedded one by one, each with its extra tokens.
        swapped: Whether the tokens lie along the last of two axes first.
    """

    shape: tuple[int, ...]
    extra: int
    frames: int | None = None
    swapped: bool = False

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values of own tokens ``[..., N]`` as the sum of the extra ones and a map."""
        if self.frames is not None:
            x = x.unflatten(-1, (self.frames, -1))
        extra, patches = x[..., : self.extra].sum(dim=-1), x[..., self.extra :]
        if self.frames is not None:
            extra = extra.sum(dim=-1)
        shape = self.shape[::-1] if self.swapped else self.shape
        patches = patches.unflatten(-1, shape)
        return extra, patches.mT if self.swapped else patches

    @property
    def n_tokens(self) -> int:
        """Own tokens ``N`` of the stream."""
        return (self.frames or 1) * (self.extra + prod(self.shape))


@dataclass(frozen=True)
class Observed:
    """A forward.

    Args:
        steps: First to last.
        grids: By modality, of those that are given.
        valid: By modality bool ``[B, N]``, own tokens that take part, or ``None`` for all.
        start: By modality, the own rows that its classifier reads.
        joint: Whether one classifier reads the rows of all modalities, each with equal weight.
        num_heads: Of every attention.
        batch: Examples.
        dtype: Of the results.
        device: Where they are.
    """

    steps: Sequence[Step]
    grids: Mapping[str, Grid]
    valid: Mapping[str, Tensor | None]
    start: Mapping[str, Sequence[int]]
    joint: bool
    num_heads: int
    batch: int
    dtype: torch.dtype
    device: torch.device


@contextmanager
def hooked(
    before: Mapping[nn.Module, Callable[..., None]],
    after: Mapping[nn.Module, Callable[..., None]] = MappingProxyType({}),
) -> Iterator[None]:
    """Call functions when modules run.

    Args:
        before: Called with a module, its arguments and keyword arguments.
        after: Called with a module, its arguments and its output.
    """
    handles = [m.register_forward_pre_hook(hook, with_kwargs=True) for m, hook in before.items()]
    handles += [m.register_forward_hook(hook) for m, hook in after.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def effects_of(
    logits: dict[str, Tensor],
    given: Sequence[str],
    lengths: Mapping[str, Tensor],
    target: Target,
    heads: Sequence[Tensor],
) -> list[Tensor | None]:
    """Gradients of each example's logit of ``target`` with respect to attentions' outputs."""
    mean = mean_of_present(logits, given, lengths)
    classes = torch.as_tensor(target, device=mean.device).expand(len(mean))
    chosen = mean.gather(1, classes[:, None].long()).sum()
    return list(torch.autograd.grad(chosen, list(heads), allow_unused=True))


def leaves(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs from which a graph starts, though every parameter may be frozen."""
    return {m: x.detach().clone().requires_grad_() for m, x in inputs.items()}


def check_target(target: Any, batch: int, num_classes: int) -> None:
    """Refuse what names no class.

    Raises:
        TypeError: It is neither an integer nor a tensor of integers.
        ValueError: A class is out of range, or the tensor is not ``[B]``.
    """
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise TypeError(f"target must hold integers, got {target.dtype}")
        if tuple(target.shape) != (batch,):
            raise ValueError(f"target must have shape [{batch}], got {list(target.shape)}")
        classes = target.tolist()
    elif type(target) is int:
        classes = [target]
    else:
        raise TypeError(f"target must be an integer or a tensor, got {target!r}")
    for index in classes:
        if not 0 <= index < num_classes:
            raise ValueError(f"target must be in 0..{num_classes - 1}, the classes, got {index}")
