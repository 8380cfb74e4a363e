"""Activation checkpointing that would lose gradients without a word."""

import sys
from collections.abc import Mapping
from types import FrameType

import torch
from torch.utils.checkpoint import CheckpointFunction

_REENTRANT = CheckpointFunction.forward.__code__


def refuse_hidden_streams() -> None:
    """Refuse a reentrant checkpoint that was given its tensors in a mapping.

    It runs without gradients first, and connects to the graph only the tensors that are arguments
    themselves. So no parameter below would get a gradient.

    Raises:
        RuntimeError: The innermost reentrant checkpoint around this call has such an argument.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _REENTRANT:
        frame = frame.f_back
    if frame and any(isinstance(argument, Mapping) for argument in frame.f_locals["args"]):
        raise RuntimeError(
            "a layer that takes a mapping of streams must be checkpointed with "
            "use_reentrant=False, got a reentrant checkpoint, which gives its parameters no "
            "gradient; a Block, which takes a tensor, may be checkpointed either way"
        )
