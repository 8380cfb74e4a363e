"""One layer of all modalities: the pre-LN block, on a list of streams.

::

    norm1, qkv  ->  attention  ->  proj, sum, norm2, fc1  ->  GELU, fc2  ->  sum, shared slots

Every arrow is one call for all streams, of an op or of a block that recomputes activations, on
whatever backend is chosen. Streams that do not fit into one call, because stochastic depth left
them different batches or their norms differ, take a call each; so do all that recompute on torch's
own functions. Modules that were replaced or have hooks are called. Where that is a ``Block`` or its
``Attention``, the blocks of the layer are called whole, each on its own stream.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbt_fast.layers.attention import Attention, attend_within, dense_backend
from mbt_fast.layers.block import GELU, Block, Mlp, apply_norm
from mbt_fast.layers.blockwise import are_unwatched, call_blocks
from mbt_fast.layers.drop_path import Keep
from mbt_fast.layers.execution import Execution
from mbt_fast.layers.hooks import are_unmodified
from mbt_fast.layers.parts import Linear, Part, affines, call_modules, one_by_one, parts_of
from mbt_fast.layers.ranges import named_range
from mbt_fast.layers.recompute import (
    Affine,
    add_norm_linear,
    gelu_linear,
    norm_mlp,
)
from mbt_fast.layers.reentrant import refuse_hidden_streams
from mbt_fast.layers.rows import Lengths, Rows, Streams, joint_valid, row_ranges, take_rows
from mbt_fast.ops import add_layer_norm, bias_gelu, linear, residual_add
from mbt_fast.ops.autocast import autocast_dtype
from mbt_fast.ops.dense_attention import attend as attend_densely
from mbt_fast.ops.dispatch import STOCK, implements
from mbt_fast.ops.operator import Entries, Implementation
from mbt_fast.ops.streams import valid_rows, write_mean_slots

SHARED = "shared"  # the name of the one block of a shared encoder


class FusionLayer(nn.ModuleDict):
    """The blocks of one layer, by modality, or one block ``"shared"`` for all of them.

    Args:
        blocks: ``Block`` per modality, or ``{"shared": Block}``.
        name: Of the layer, in traces.
    """

    def __init__(self, blocks: Mapping[str, Block], name: str = "layer") -> None:
        """Keep the blocks."""
        super().__init__(blocks)
        self._name = name
        self._execution = Execution()
        self._backend = self._layer_backend = self._linear_backend = "auto"

    @property
    def chosen_backend(self) -> str:
        """Who runs the ops."""
        return self._backend

    def set_backend(self, backend: str) -> None:
        """Choose the backend of every op; what it does not have is stock."""
        self._backend = backend
        self._layer_backend = backend if implements(backend, "add_layer_norm") else STOCK.name
        self._linear_backend = backend if implements(backend, "linear") else STOCK.name
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = self._backend
            elif isinstance(module, Mlp):
                module.backend = self._layer_backend

    def set_execution(self, execution: Execution) -> None:
        """Choose what the blocks neither compute nor keep."""
        self._execution = execution
        for module in self.modules():
            if isinstance(module, Block):
                module.skip_dropped = execution.skip_dropped

    def reset_parameters(self) -> None:
        """Draw the weights of all blocks anew."""
        for block in self.values():
            cast(Block, block).reset_parameters()

    def block_of(self, modality: str) -> Block:
        """The block through which the stream of ``modality`` passes."""
        return cast(Block, self[SHARED if SHARED in self else modality])

    def forward(
        self,
        streams: Streams,
        lengths: Lengths,
        *,
        n_slots: int = 0,
        pairwise: bool = False,
        valid: Tensor | None = None,
        rows: Sequence[int] | None = None,
    ) -> Streams:
        """Pass all streams through the layer.

        Args:
            streams: ``[B, S_m, C]`` per modality, own tokens then slots; or, in a shared encoder,
                all modalities as the one stream ``"shared"``.
            lengths: int32 ``[B]`` per modality that has padding; not checked here.
            n_slots: ``P``, the last rows of every stream that the layer shares (Eq. 7-9); 0 leaves
                the streams to themselves.
            pairwise: Let every stream's queries attend to the keys of all (Eq. 5-6).
            valid: bool ``[B, S]``, the rows of joined streams that take part, ``None`` for all.
            rows: Rows of every stream to compute, ``None`` for all. The others are keys and values
                only, and no slots are shared. A backend without ``dense_attention`` leaves these
                few queries to ``"auto"``.

        Returns:
            The streams after the layer, of ``len(rows)`` rows if these are given.

        Raises:
            RuntimeError: The layer is in a reentrant checkpoint, which sees no tensor in a mapping.
        """
        refuse_hidden_streams()
        blocks = [self.block_of(modality) for modality in streams]
        if not are_unwatched(blocks):
            with self._range():
                return call_blocks(blocks, streams, lengths, n_slots, pairwise, valid, rows)
        with self._range():
            xs = list(streams.values())
            kept = [block.sample_keep(x) for block, x in zip(blocks, xs, strict=True)]
            attention, mlp = [pair[0] for pair in kept], [pair[1] for pair in kept]
            if pairwise or valid is not None or rows is not None:
                heads = self._attend_densely(
                    blocks, streams, lengths, attention, n_slots, pairwise, valid, rows
                )
                xs = [take_rows(x, rows) for x in xs]
            else:
                heads = self._attend_within(blocks, streams, lengths, attention, n_slots)
            with self._range(" / proj"):
                branches = self._project(blocks, heads)
            with self._range(" / mlp"):
                sums, branches = self._pass_mlps(blocks, xs, branches, attention, mlp)
            with self._range(" / residual, shared slots"):
                padding = [lengths.get(m) if rows is None else None for m in streams]
                shared = n_slots if rows is None else 0
                outs = self._add_mlps(sums, branches, mlp, shared, padding)
        return dict(zip(streams, outs, strict=True))

    def _attend_within(
        self,
        blocks: Sequence[Block],
        streams: Streams,
        lengths: Lengths,
        kept: Sequence[Keep],
        n_slots: int,
    ) -> list[Tensor]:
        """Self-attention of each stream, slots included: ``[K, S_m, H, D]``."""
        with self._range(" / qkv"):
            xs, padding = list(streams.values()), [lengths.get(m) for m in streams]
            if _skips(kept):
                xs = [keep.take(x) for keep, x in zip(kept, xs, strict=True)]
                padding = [keep.take(length) for keep, length in zip(kept, padding, strict=True)]
            norms, linears = [b.norm1 for b in blocks], [b.attn.qkv for b in blocks]
            nothing = [None] * len(xs)
            _, products = self._norm_linears(xs, nothing, nothing, norms, linears)
            packed = [b.attn.split(x) for b, x in zip(blocks, products, strict=True)]
        alike = all(stream.shape[0] == packed[0].shape[0] for stream in packed)
        heads: list[Tensor] = []
        with self._range(" / attention"):
            for part in [slice(None)] if alike else one_by_one(packed):
                heads += attend_within(packed[part], n_slots, padding[part], self._backend)
        return heads

    def _attend_densely(
        self,
        blocks: Sequence[Block],
        streams: Streams,
        lengths: Lengths,
        kept: Sequence[Keep],
        n_slots: int,
        pairwise: bool,
        valid: Tensor | None,
        rows: Sequence[int] | None,
    ) -> list[Tensor]:
        """Queries of some rows; keys and values of the own stream, or of all under its weights."""
        backend = dense_backend(self._backend, rows)
        if pairwise:
            valid = joint_valid(streams, lengths)
            joined = torch.cat(list(streams.values()), dim=1)
        heads = []
        ranges = row_ranges(streams)
        for (modality, x), block, keep in zip(streams.items(), blocks, kept, strict=True):
            tokens, mask, queries = x, valid, cast(Rows, rows)
            if pairwise:
                own = ranges[modality]
                tokens, queries = joined, own if rows is None else [own.start + r for r in rows]
            elif valid is None:
                mask = valid_rows(lengths.get(modality), x.shape[1], n_slots)
            with self._range(" / qkv"):
                projected = self._query_key_value(block, keep.take(tokens), queries)
            with self._range(" / attention"):
                out = attend_densely(*projected, keep.take(mask), backend=backend)
            heads.append(out.transpose(1, 2))
        return heads

    def _query_key_value(
        self, block: Block, x: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of some rows of ``[B, S, C]``, keys and values of all: ``[B, H, rows, D]``.

        Nothing else is computed, unless ``qkv`` has been replaced or has hooks: then it is called
        as a module, and the queries are picked from its output.
        """
        attn, norm = block.attn, [block.norm1]
        if rows is None or not are_unmodified((nn.Linear, [attn.qkv])):
            _, (product,) = self._norm_linears([x], [None], [None], norm, [attn.qkv])
            query, key, value = attn.split(product).unbind(2)
            query = take_rows(query, rows)
        else:
            of_query, of_key_value = attn.query_and_key_value()
            if are_unmodified((nn.LayerNorm, norm)):
                calls = ((take_rows(x, rows), of_query), (x, of_key_value))
                products = [
                    self._norm_linears([part], [None], [None], norm, [affine])[1][0]
                    for part, affine in calls
                ]
            else:  # called once, with all rows
                normed = apply_norm(block.norm1, x)
                products = [
                    functional.linear(take_rows(normed, rows), *of_query),
                    functional.linear(normed, *of_key_value),
                ]
            query = attn.split(products[0]).squeeze(2)
            key, value = attn.split(products[1]).unbind(2)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def _project(self, blocks: Sequence[Block], heads: Sequence[Tensor]) -> list[Tensor]:
        """What attention adds to each stream: its heads ``[B, S, H, D]`` back in ``[B, S, C]``."""
        together = are_unmodified((nn.Linear, [b.attn.proj for b in blocks]))
        branches: list[Tensor] = []
        for part in [slice(None)] if together else one_by_one(blocks):
            modules, rows = [b.attn.proj for b in blocks[part]], [h.flatten(2) for h in heads[part]]
            if together or are_unmodified((nn.Linear, modules)):
                linears = affines(modules)
                chosen = self._choose_linear(rows, linears)
                branches += linear.products(chosen, rows, *zip(*linears, strict=True))
            else:
                branches += [module(x) for module, x in zip(modules, rows, strict=True)]
        return [b.drop(branch) for b, branch in zip(blocks, branches, strict=True)]

    def _pass_mlps(
        self,
        blocks: Sequence[Block],
        xs: Sequence[Tensor],
        branches: Sequence[Tensor],
        attention: Sequence[Keep],
        mlp: Sequence[Keep],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Streams with their attention branches added, and what the MLPs make of the kept ones."""
        unmodified = [b.is_mlp_unmodified() for b in blocks]
        recompute = self._recompute()
        recomputes_all = recompute == "mlp" and all(unmodified)
        if recomputes_all or _skips((*attention, *mlp)):
            sums = [k.add(*pair) for k, *pair in zip(attention, xs, branches, strict=True)]
            inputs, nothing = [k.take(y) for k, y in zip(mlp, sums, strict=True)], [None] * len(xs)
            return sums, self._mlps(blocks, inputs, nothing, nothing, unmodified, recompute)[1]
        masks = [keep.mask for keep in attention]
        return self._mlps(blocks, xs, branches, masks, unmodified, recompute)

    def _mlps(
        self,
        blocks: Sequence[Block],
        xs: Sequence[Tensor],
        branches: Entries,
        masks: Entries,
        unmodified: Sequence[bool],
        recompute: str,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Sums of streams and branches, and the MLPs of their norms."""
        norms = [b.norm2 for b in blocks]
        whole = [b for b, is_whole in zip(blocks, unmodified, strict=True) if is_whole]
        gelu = self._choose_gelu(whole[0], xs) if whole else bias_gelu.TORCH
        if recompute == "mlp" and all(unmodified):
            apart = self._recomputes_apart(xs)
            parts = parts_of(xs, branches, norms, [b.mlp.fc1 for b in blocks], apart=apart)
            if all(fits for _, fits in parts):
                return list(xs), self._norm_mlps(blocks, xs, parts, gelu)
        # Torch adds the first bias in the Linear, a kernel in GELU.
        adds_bias = gelu is not bias_gelu.TORCH and all(unmodified)
        firsts: list[Linear] = [b.mlp.fc1 if b in whole else b.mlp for b in blocks]
        if adds_bias:
            firsts = [Affine(b.mlp.fc1.weight, None) for b in blocks]
        sums, hidden = self._norm_linears(xs, branches, masks, norms, firsts)
        together = all(unmodified) and len({x.dtype for x in hidden}) == 1
        together &= recompute == "none" or gelu is not bias_gelu.TORCH
        for part in [slice(None)] if together else one_by_one(hidden):
            if all(unmodified[part]):
                biases = [b.mlp.fc1.bias if adds_bias else None for b in blocks[part]]
                seconds = affines([b.mlp.fc2 for b in blocks[part]])
                chosen = self._choose_linear(hidden[part], seconds)
                hidden[part] = gelu_linear(
                    hidden[part], biases, seconds, GELU, gelu, chosen, recompute=recompute != "none"
                )
        return sums, hidden

    def _norm_mlps(
        self,
        blocks: Sequence[Block],
        xs: Sequence[Tensor],
        parts: Sequence[Part],
        gelu: Implementation,
    ) -> list[Tensor]:
        """MLPs of which nothing but the input is kept."""
        outs: list[Tensor] = []
        for part, _ in parts:
            streams, norms = xs[part], [b.norm2 for b in blocks[part]]
            first = affines([b.mlp.fc1 for b in blocks[part]])
            second = affines([b.mlp.fc2 for b in blocks[part]])
            norm = add_layer_norm.choose(streams, self._layer_backend)
            chosen = self._choose_linear(streams, first)  # for the second too, which is as large
            outs += norm_mlp(
                streams, affines(norms), first, second, norms[0].eps, GELU, norm, gelu, chosen
            )
        return outs

    def _norm_linears(
        self,
        xs: Sequence[Tensor],
        branches: Entries,
        masks: Entries,
        norms: Sequence[nn.LayerNorm],
        linears: Sequence[Linear],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Sums of streams and branches, and a Linear of their LayerNorm."""
        recomputes = self._recompute() != "none"
        sums: list[Tensor] = []
        products: list[Tensor] = []
        apart = recomputes and self._recomputes_apart(xs)
        for part, fits in parts_of(xs, branches, norms, linears, apart=apart):
            call = (xs[part], branches[part], masks[part], norms[part], linears[part])
            if fits:
                norm = add_layer_norm.choose(xs[part], self._layer_backend)
                parameters = affines(linears[part])
                results = add_norm_linear(
                    *call[:3],
                    affines(norms[part]),
                    parameters,
                    norms[part][0].eps,
                    norm,
                    self._choose_linear(xs[part], parameters),
                    recompute=recomputes,
                )
            else:
                results = call_modules(*call)
            sums += results[0]
            products += results[1]
        return sums, products

    def _add_mlps(
        self,
        sums: Sequence[Tensor],
        branches: Sequence[Tensor],
        kept: Sequence[Keep],
        n_slots: int,
        lengths: Entries,
    ) -> list[Tensor]:
        """The end of a layer: each stream's MLP is added, and the slots are shared (Eq. 9).

        Slots or masks take one call of the op, unless a branch was computed for some examples only,
        or streams have different dtypes, before or after the sum.
        """
        masks = [keep.mask for keep in kept]
        shares = n_slots > 0 and len(sums) > 1
        pairs = list(zip(sums, branches, strict=True))
        dtypes = {torch.promote_types(x.dtype, branch.dtype) for x, branch in pairs}
        plain = not shares and all(mask is None for mask in masks)
        if plain or _skips(kept) or len(dtypes | {x.dtype for x in sums}) > 1:
            outs = [keep.add(x, branch) for (x, branch), keep in zip(pairs, kept, strict=True)]
            if shares:
                write_mean_slots(outs, n_slots, lengths)
            return outs
        branches = [branch.to(x.dtype) for x, branch in pairs]
        return residual_add.add(sums, branches, masks, lengths, n_slots, self._layer_backend)

    def _choose_gelu(self, block: Block, xs: Sequence[Tensor]) -> Implementation:
        """Who runs GELU of what the first Linears, like that of ``block``, make of the streams."""
        weight = block.mlp.fc1.weight
        elements = sum(x.shape[0] * x.shape[1] for x in xs) * weight.shape[0]
        dtype = autocast_dtype(weight)
        return bias_gelu.choose(xs[0].device, dtype, elements, GELU, self._layer_backend)

    def _choose_linear(self, xs: Sequence[Tensor], linears: Sequence[Affine]) -> Implementation:
        """Who runs Linears of the streams."""
        return linear.choose(xs, [each.weight for each in linears], self._linear_backend)

    def _range(self, part: str = "") -> AbstractContextManager:
        """``named_range`` of the layer or of a part of it.

        The name is not read without need: a compiler that sees it compiles every layer anew.
        """
        if torch.compiler.is_compiling() or not torch.autograd._profiler_enabled():
            return nullcontext()
        return named_range(self._name + part)

    def _recomputes_apart(self, xs: Sequence[Tensor]) -> bool:
        """Whether each stream takes a call of its own, which recomputes.

        Torch's own functions gain nothing from one call; and in that, what one stream needs for its
        gradients would be kept and computed for all.
        """
        return add_layer_norm.choose(xs, self._layer_backend) is add_layer_norm.TORCH

    def _recompute(self) -> str:
        """What blocks compute again in the backward; a compiler makes this choice by itself."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return "none"
        return self._execution.recompute


def _skips(kept: Sequence[Keep]) -> bool:
    """Whether a branch is computed for some examples only."""
    return any(keep.index is not None for keep in kept)


def enter_fusion(streams: Streams, bottleneck_tokens: Tensor) -> Streams:
    """Append each stream's copy of the bottleneck tokens ``[1, P, C]``, its slots."""
    fused = {}
    for modality, x in streams.items():
        slots = bottleneck_tokens.to(x.dtype).expand(x.shape[0], -1, -1)
        fused[modality] = torch.cat([x, slots], dim=1)
    return fused
