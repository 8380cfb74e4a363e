"""Bottleneck attention on a kernel backend, differentiable once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mbt_fast import ops
from mbt_fast.autograd.refuse import first_derivative, refuse_forward_mode


class BottleneckAttention(torch.autograd.Function):
    """All streams at once. Arguments: the four options, then ``M`` streams, then ``M`` lengths."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        n_bottlenecks: int, update_mean: bool, scale: float, backend: str, *tensors: Any
    ) -> tuple[Tensor, ...]:
        """Run the forward operator: ``M`` outputs, ``M`` log-sum-exps, what the backward needs."""
        qkv, lengths = _halves(tensors)
        return tuple(
            ops.bottleneck_attention_fwd(qkv, lengths, n_bottlenecks, update_mean, scale, backend)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep streams, lengths and all outputs."""
        ctx.options, tensors = inputs[:4], inputs[4:]
        ctx.count = len(tensors) // 2
        outs, kept = output[: ctx.count], output[2 * ctx.count :]
        ctx.save_for_backward(*tensors, *outs, *kept)
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Packed gradients of the streams."""
        count = ctx.count
        unused = [None] * (4 + count)
        if all(grad is None for grad in grads):
            return (*unused, *[None] * count)
        saved = ctx.saved_tensors  # read once: activation checkpointing forbids a second time
        outs = saved[2 * count : 3 * count]
        douts = [
            torch.zeros_like(out) if dout is None else dout
            for out, dout in zip(outs, grads[:count], strict=True)
        ]
        dlses = grads[count : 2 * count]
        *_, backend = ctx.options
        arguments = (*ctx.options, *douts, *dlses, *saved)
        dqkv = first_derivative(backend, _backward, *arguments)
        return (*unused[:4], *dqkv, *unused[4:])


def run_kernel(
    qkv: Sequence[Tensor],
    n_bottlenecks: int,
    lengths: Sequence[Tensor | None],
    update: str | None,
    scale: float,
    backend: str,
) -> tuple[list[Tensor], list[Tensor]]:
    """``reference.bottleneck_attention`` on a kernel backend, by its name."""
    options = (n_bottlenecks, update == "mean", scale, backend)
    refuse_forward_mode(backend, qkv)
    if torch.is_grad_enabled() and any(stream.requires_grad for stream in qkv):
        results = BottleneckAttention.apply(*options, *qkv, *lengths)
    else:  # quicker; and Dynamo cannot trace a Function of any number of tensors without gradients
        results = ops.bottleneck_attention_fwd(qkv, lengths, *options)
    count = len(qkv)
    return list(results[:count]), list(results[count : 2 * count])


def _halves(tensors: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    count = len(tensors) // 2
    return list(tensors[:count]), list(tensors[count:])


def _backward(
    n_bottlenecks: int, update_mean: bool, scale: float, backend: str, *tensors: Any
) -> tuple[Tensor, ...]:
    """The backward operator: ``M`` each of douts, dlses, streams, lengths; then what was saved."""
    count = (len(tensors) - 1) // 6  # saved are M outputs, M statistics, and the slots
    douts, dlses, qkv, lengths = (
        list(tensors[part * count : (part + 1) * count]) for part in range(4)
    )
    options = (n_bottlenecks, update_mean, scale, backend)
    saved = list(tensors[4 * count :])
    return tuple(ops.bottleneck_attention_bwd(douts, dlses, saved, qkv, lengths, *options))
