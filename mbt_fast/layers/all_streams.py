"""The layer around attention for all streams at once, where a kernel backend norms them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mbt_fast import dispatch
from mbt_fast.autograd.add_norm_linear import add_norm_linear
from mbt_fast.autograd.mlp import gelu_linear
from mbt_fast.layers.block import GELU, Block, Mlp
from mbt_fast.layers.plain import is_plain
from mbt_fast.layers.stochastic_depth import Survivors

Pairs = Sequence[tuple[Survivors, Survivors]]  # attention's, the MLP's; of each stream


def choose_norms(
    blocks: Sequence[Block], streams: Sequence[Tensor], survivors: Pairs, backend: str
) -> str:
    """Who norms the streams: a kernel backend all at once, or ``"reference"``, block by block.

    A compiler fuses torch's own with what surrounds it; and where branches are computed for some
    examples only, the streams have no batch in common.
    """
    if torch.compiler.is_compiling() or any(
        s.index is not None for pair in survivors for s in pair
    ):
        return "reference"
    if not all(_can_be_joined(*each) for each in zip(blocks, streams, strict=True)):
        return "reference"
    if len({(b.norm1.eps, b.norm2.eps) for b in blocks}) > 1 or len({x.dtype for x in streams}) > 1:
        return "reference"
    return dispatch.select(dispatch.Call.of_layer("add_layer_norm", streams), backend)


def pass_streams(
    blocks: Sequence[Block],
    streams: Sequence[Tensor],
    survivors: Pairs,
    attend: Callable[[list[Tensor]], list[Tensor]],
    norms: str,
) -> tuple[list[Tensor], list[Tensor]]:
    """``Block.packed``, attention, ``Block.add_and_pass_mlp`` of all streams, norms in two calls.

    The first bias of the MLP is added by GELU, whose backward sums up its gradient.

    Args:
        blocks: Of each stream; those that ``choose_norms`` has found fit.
        streams: ``[B, S_m, C]``.
        survivors: Of each stream, without an index.
        attend: Maps packed ``[B, S_m, 3, H, D]`` of all streams to ``[B, S_m, H, D]``.
        norms: A kernel backend.
    """
    attention = [of_attention for of_attention, _ in survivors]
    heads = attend(project(blocks, streams, norms))
    branches = [b.attn.output(out) for b, out in zip(blocks, heads, strict=True)]
    return add_and_pass_mlps(blocks, streams, branches, attention, norms)


def project(blocks: Sequence[Block], streams: Sequence[Tensor], norms: str) -> list[Tensor]:
    """``Block.packed`` of all streams."""
    nothing = [None] * len(streams)
    affine = [(b.norm1.weight, b.norm1.bias) for b in blocks]
    qkv = [(b.attn.qkv.weight, b.attn.qkv.bias) for b in blocks]
    _, products = add_norm_linear(
        streams, nothing, nothing, affine, qkv, blocks[0].norm1.eps, norms
    )
    return [b.attn.split(product) for b, product in zip(blocks, products, strict=True)]


def add_and_pass_mlps(
    blocks: Sequence[Block],
    streams: Sequence[Tensor],
    branches: Sequence[Tensor],
    survivors: Sequence[Survivors],
    norms: str,
) -> tuple[list[Tensor], list[Tensor]]:
    """Streams with their attention branches added, and what their MLPs make of these."""
    keep = [of_attention.mask for of_attention in survivors]
    affine = [(b.norm2.weight, b.norm2.bias) for b in blocks]
    unbiased = [(b.mlp.fc1.weight, None) for b in blocks]
    sums, products = add_norm_linear(
        streams, branches, keep, affine, unbiased, blocks[0].norm2.eps, norms
    )
    return sums, [_activated(b.mlp, x) for b, x in zip(blocks, products, strict=True)]


def _activated(mlp: Mlp, product: Tensor) -> Tensor:
    """The rest of the MLP, from the product of its first Linear without bias."""
    second, first_bias = mlp.fc2, mlp.fc1.bias
    return gelu_linear(
        product, second.weight, second.bias, GELU, mlp.backend, first_bias=first_bias
    )


def _can_be_joined(block: Block, x: Tensor) -> bool:
    """Whether a block is as it was built, recomputes its norms, drops nothing out, and fits."""
    mlp, norms = block.mlp, (block.norm1, block.norm2)
    if not is_plain(mlp, Mlp) or not all(is_plain(norm, nn.LayerNorm) for norm in norms):
        return False
    if not all(is_plain(linear, nn.Linear) for linear in (block.attn.qkv, mlp.fc1, mlp.fc2)):
        return False
    if torch.is_grad_enabled() and block.savings.memory != "reduced":
        return False
    if block.training and (block.dropout > 0.0 or mlp.dropout > 0.0):
        return False
    fitting = (x.dtype, torch.promote_types(x.dtype, torch.float32))
    parameters = [p for norm in norms for p in (norm.weight, norm.bias)]
    return all(p is not None and p.dtype in fitting for p in parameters)
