"""The ops as ``mbt-fast bench`` calls them: at the shapes of a model, on every backend."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mbt_fast import dispatch
from mbt_fast.functional import (
    add_layer_norm,
    bias_gelu,
    bottleneck_attention,
    linear,
    residual_add,
)
from mbt_fast.models import MBTConfig
from mbt_fast.profiling.comparison import verdicts_in
from mbt_fast.profiling.runs import Setting
from mbt_fast.profiling.timing import Run

INTERPRETED = "not run: Triton's interpreter says nothing about the kernel's speed"


class Op(NamedTuple):
    """An op at the shapes that the model gives it.

    Args:
        leaves: The tensors that get gradients in training.
        run: Calls the op on a backend; returns all that it computes.
    """

    leaves: Sequence[Tensor]
    run: Callable[[str], Sequence[Tensor]]


def ops_of(config: MBTConfig, setting: Setting) -> Iterator[tuple[str, Op]]:
    """The ops with random tensors, of all streams; the MLP's Linear and GELU of the longest."""
    slots = config.n_slots
    rows = [config.n_tokens(m) + slots for m in config.modalities]

    def random(*shape: int) -> Tensor:
        x = torch.randn(*shape, device=setting.device, dtype=setting.dtype)
        return x.requires_grad_(setting.mode == "train")

    batch, width = setting.batch_size, config.hidden_size
    qkv = [random(batch, row, 3, config.num_heads, max(config.head_dim, 16)) for row in rows]
    yield "bottleneck_attention", Op(qkv, lambda b: bottleneck_attention(qkv, slots, backend=b))
    layer = [random(batch, max(rows), width), random(config.mlp_dim, width), random(config.mlp_dim)]
    yield "linear", Op(layer, lambda b: [linear(*layer, backend=b)])
    hidden = random(batch, max(rows), config.mlp_dim)
    yield "bias_gelu", Op([hidden], lambda b: [bias_gelu(hidden, backend=b)])
    x, branches = ([random(batch, row, width) for row in rows] for _ in range(2))
    weights, biases = ([random(width) for _ in rows] for _ in range(2))

    def norm(backend: str) -> Sequence[Tensor]:
        sums, normed = add_layer_norm(
            x, branches, weights, biases, n_bottlenecks=slots, backend=backend
        )
        return [*sums, *normed]

    def add(backend: str) -> Sequence[Tensor]:
        return residual_add(x, branches, n_bottlenecks=slots, backend=backend)

    yield "add_layer_norm", Op([*x, *branches, *weights, *biases], norm)
    yield "residual_add", Op([*x, *branches], add)


def verdicts_of(op: Op, device: torch.device) -> dict[str, str]:
    """What dispatch says of every backend: one for another device refuses, and shows the table."""
    try:
        op.run("cpu" if device.type == "cuda" else "cuda")
    except dispatch.BackendError as error:
        verdicts = verdicts_in(str(error))
    if os.environ.get("TRITON_INTERPRET") == "1":
        verdicts["triton"] = INTERPRETED
    return verdicts


def timed_call(
    outs: Callable[[], Sequence[Tensor]], leaves: Sequence[Tensor], setting: Setting
) -> Run:
    """What is timed: the forward, or forward and backward."""
    if setting.mode == "forward":
        return torch.inference_mode()(outs)
    gradients: list[Tensor] = []  # drawn in the first call

    def step() -> object:
        found = outs()
        gradients.extend(torch.randn_like(out) for out in found[len(gradients) :])
        return torch.autograd.grad(found, leaves, gradients)

    return step
