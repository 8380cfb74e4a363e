"""Attention rollout written out: whole matrices over all rows of one example, from the weights.

Nothing of an example is padding here: rows behind its length are cut off, and a modality that it
lacks is left out.
"""

import torch
from torch.nn.functional import gelu, layer_norm, linear

EPS = 1e-6


def one_example(inputs, lengths, index):
    """Inputs of one example, and how many tokens each of its modalities has, if not all."""
    counts = {m: int(x[index]) for m, x in (lengths or {}).items() if x is not None}
    return {m: x[index : index + 1] for m, x in inputs.items() if counts.get(m, 1)}, counts


class Materialised:
    """The forward of one example in which every probability is a matrix that remains.

    ``layers`` has for each step the matrices ``[H, R, R]`` of all rows, what sharing the slots does
    to rows ``[R, R]``, and how many slots a stream has.
    """

    def __init__(self, model, inputs, counts=None):
        self.model, self.config = model, model.config
        self.names = [m for m in self.config.modalities if m in inputs]
        counts = counts or {}
        self.streams = {m: model.embed[m](inputs[m])[0, : counts.get(m)] for m in self.names}
        self.own = {m: len(x) for m, x in self.streams.items()}
        self.layers = []
        self.run()

    def run(self):
        config = self.config
        fusion = config.fusion_layer if config.test_with_bottlenecks else config.num_layers
        for index in range(config.num_layers):
            slots = config.n_slots if index >= fusion else 0
            if slots and index == fusion:
                tokens = self.model.bottleneck_tokens[0]
                self.streams = {m: torch.cat([x, tokens]) for m, x in self.streams.items()}
            pairwise = config.fusion == "vanilla" and index >= config.fusion_layer
            order = getattr(config, "update_order", None) if slots else None
            if order:
                for m in order:
                    if m in self.names:
                        self.step(index, [m], slots, pairwise)
            else:
                self.step(index, self.names, slots, pairwise)
        logits = [self.model.head(self.norm(x[0], self.model.norm)) for x in self.streams.values()]
        self.logits = torch.stack(logits).mean(0)

    def step(self, index, names, slots, pairwise):
        """Some streams pass a layer; then their slots are averaged, and written into all."""
        ranges, start = {}, 0
        for m, x in self.streams.items():
            ranges[m] = slice(start, start + len(x))
            start += len(x)
        total = start
        matrices = torch.zeros(self.config.num_heads, total, total, dtype=torch.float64)
        before, everything = self.streams, torch.cat(list(self.streams.values()))
        after, self.parts = dict(before), []
        for m in names:
            keys = slice(0, total) if pairwise else ranges[m]
            after[m], p = self.block(index, m, before[m], everything[keys])
            self.parts.append((p, ranges[m], keys))
        for p, rows, keys in self.parts:
            matrices[:, rows, keys] = p.detach()
        share = torch.eye(total, dtype=torch.float64)
        if slots:
            for slot in range(-slots, 0):
                rows = [ranges[m].stop + slot for m in before]
                sources = [ranges[m].stop + slot for m in names]
                share[rows] = 0
                for row in rows:
                    share[row, sources] = 1 / len(sources)
            mean = torch.stack([after[m][-slots:] for m in names]).mean(0)
            after = {m: torch.cat([x[:-slots], mean]) for m, x in after.items()}
        self.streams = after
        moved = [ranges[m] for m in names]
        self.layers.append((matrices, share, slots, self.parts, moved))

    def block(self, index, m, own, keys):
        layer = self.model.blocks[index]
        block = layer["shared" if "shared" in layer else m]
        heads = self.config.num_heads
        weight, bias = block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
        query, key, value = (
            linear(self.norm(x, block.norm1), w, b).unflatten(-1, (heads, -1)).transpose(0, 1)
            for x, w, b in zip((own, keys, keys), weight, bias, strict=True)
        )
        p = torch.softmax(query @ key.mT / self.config.head_dim**0.5, dim=-1)
        if p.requires_grad:
            p.retain_grad()
        y = own + block.attn.proj((p @ value).transpose(0, 1).flatten(1))
        hidden = gelu(block.mlp.fc1(self.norm(y, block.norm2)), approximate="tanh")
        return y + block.mlp.fc2(hidden), p

    @staticmethod
    def norm(x, module):
        return layer_norm(x, x.shape[-1:], module.weight, module.bias, EPS)

    def rollout(self, layer_matrix, residual=0.5):
        """The product of all layers: rows of the output by own tokens, then learned tokens."""
        n_own, n_learned = sum(self.own.values()), self.config.n_slots
        product = torch.eye(n_own, n_own + n_learned, dtype=torch.float64)
        slots_before = 0
        for number, (matrices, share, slots, _, moved) in enumerate(self.layers):
            if slots and not slots_before:
                learned = torch.eye(n_own + n_learned, dtype=torch.float64)[n_own:]
                parts = product.split(list(self.own.values()))
                product = torch.cat([row for part in parts for row in (part, learned)])
            slots_before = slots
            a = layer_matrix(number, matrices)
            through = product + a @ product
            if residual is not None:
                through = residual * product + (1 - residual) * a @ product
            stepped = product.clone()
            for rows in moved:
                stepped[rows] = through[rows]
            product = share @ stepped
        self.n_slots_last = slots_before
        return product

    def cls_rows(self):
        """Where the CLS tokens are in the output."""
        rows, start = {}, 0
        for m, count in self.own.items():
            rows[m] = start
            start += count + self.n_slots_last
        return rows

    def effects(self, target):
        """Per step the positive part of probability times gradient, mean over heads: ``[R, R]``."""
        self.logits[target].backward()
        results = []
        for matrices, *_, parts, _ in self.layers:
            whole = torch.zeros_like(matrices)
            for p, rows, keys in parts:
                gradient = torch.zeros_like(p) if p.grad is None else p.grad
                whole[:, rows, keys] = (p * gradient).clamp(min=0).detach()
            results.append(whole.mean(0))
        return results

    def split(self, row):
        """A row of the product as masses of each modality's tokens, and of the learned tokens."""
        parts = row.split([*self.own.values(), self.config.n_slots])
        return dict(zip(self.own, parts, strict=False)), parts[-1]


def expected_rollout(model, inputs, lengths, heads="mean", residual=0.5):
    """Per example: source modality -> (masses of own tokens by modality, of learned tokens)."""

    def layer_matrix(number, matrices):
        if heads == "mean":
            return matrices.mean(0)
        if heads == "max":
            largest = matrices.amax(0)
            sums = largest.sum(-1, keepdim=True)
            return torch.where(sums > 0, largest / sums, 0)
        return matrices[list(heads)].mean(0)

    results = []
    for index in range(len(next(iter(inputs.values())))):
        example, counts = one_example(inputs, lengths, index)
        results.append({})
        if example:
            with torch.no_grad():
                forward = Materialised(model, example, counts)
            product = forward.rollout(layer_matrix, residual)
            results[-1] = {m: forward.split(product[r]) for m, r in forward.cls_rows().items()}
    return results


def expected_for_class(model, inputs, lengths, targets):
    """As ``expected_rollout``, by the gradient of each example's class."""
    results = []
    for index, target in enumerate(targets):
        example, counts = one_example(inputs, lengths, index)
        results.append({})
        if not example:
            continue
        forward = Materialised(model, example, counts)
        effects = forward.effects(target)
        product = forward.rollout(lambda number, _, e=effects: e[number], residual=None)
        column = 0
        for m, row in forward.cls_rows().items():
            masses = product[row].clone()
            masses[column] -= 1  # what the CLS token starts with
            column += forward.own[m]
            results[-1][m] = forward.split(masses / masses.sum())
    return results
