"""Reentrant activation checkpoints that would lose gradients without a word."""

import sys
from collections.abc import Mapping
from types import FrameType

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

_REENTRANT = CheckpointFunction.forward.__code__


def refuse_hidden_streams() -> None:
    """Refuse a reentrant checkpoint that was given streams in a mapping.

    It runs without gradients first, and connects to the graph only the tensors that are arguments
    themselves. So parameters that only such streams pass through would get no gradient.

    Raises:
        RuntimeError: An argument of the innermost reentrant checkpoint around this call is a
            mapping with a floating-point tensor. An empty one, or one of lengths, hides nothing.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _REENTRANT:
        frame = frame.f_back
    if frame and any(_holds_streams(argument) for argument in frame.f_locals["args"]):
        raise RuntimeError(
            "a layer that takes a mapping of streams must be checkpointed with "
            "use_reentrant=False, got a reentrant checkpoint, which gives its parameters no "
            "gradient; a Block, which takes a tensor, may be checkpointed either way"
        )


def _holds_streams(argument: object) -> bool:
    if not isinstance(argument, Mapping):
        return False
    return any(isinstance(x, Tensor) and x.is_floating_point() for x in argument.values())
