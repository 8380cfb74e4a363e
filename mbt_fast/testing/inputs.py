"""Random calls of bottleneck attention: fresh shapes, layouts, lengths and options from a seed."""

import random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mbt_fast.functional import bottleneck_attention


class RandomCall(NamedTuple):
    """Arguments of ``bottleneck_attention``; the streams are float32 ``[B, S_m, 3, H, D]``."""

    qkv: list[Tensor]
    n_bottlenecks: int
    options: dict[str, Any]


def random_call(seed: int, device: torch.device) -> RandomCall:
    """Draw 1 to 4 streams of 0 to 87 rows in some layout, maybe with lengths, and the options."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    batch, heads = choose.randint(1, 3), choose.randint(1, 3)
    head_dim = choose.choice([16, 17, 24, 31, 48, 63, 64, 65, 96, 128])
    slots = choose.choice([0, 1, 2, 4, 5, 17])
    own = [choose.choice([0, 1, 2, 15, 16, 17, 33, 70]) for _ in range(choose.randint(1, 4))]
    layout = choose.choice(["contiguous", "slice", "heads first", "expanded"])
    wide = [torch.randn(batch, n + slots, 3, heads, head_dim + 5, generator=generator) for n in own]
    streams = [_laid_out(stream.to(device)[..., 2 : head_dim + 2], layout) for stream in wide]
    lengths = None
    if choose.random() < 0.6:
        values = [[choose.randint(0, n) for _ in range(batch)] for n in own]
        lengths = [
            None if choose.random() < 0.3 else torch.tensor(v, dtype=torch.int32, device=device)
            for v in values
        ]
    update, scale = choose.choice([None, "mean"]), choose.choice([None, 0.0, -0.3, 0.5])
    return RandomCall(streams, slots, {"lengths": lengths, "update": update, "scale": scale})


def _laid_out(stream: Tensor, layout: str) -> Tensor:
    if layout == "contiguous":
        return stream.contiguous()
    if layout == "heads first":
        return stream.permute(3, 0, 1, 2, 4).contiguous().permute(1, 2, 3, 0, 4)
    if layout == "expanded":
        return stream[:1].expand_as(stream)
    return stream


def run_call(call: RandomCall, backend: str, dtype: torch.dtype) -> dict[str, list[Tensor]]:
    """Outputs, log-sum-exps, and packed gradients for random weights on both."""
    leaves = [stream.to(dtype).detach().requires_grad_() for stream in call.qkv]
    outs, lses = bottleneck_attention(
        leaves, call.n_bottlenecks, return_lse=True, backend=backend, **call.options
    )
    generator = torch.Generator().manual_seed(0)
    results = [*outs, *(lse.masked_fill(lse.isinf(), 0) for lse in lses)]
    weights = [torch.randn(r.shape, generator=generator).to(r) for r in results]
    return {"out": outs, "lse": lses, "dqkv": list(torch.autograd.grad(results, leaves, weights))}
