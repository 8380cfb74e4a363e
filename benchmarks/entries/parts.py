"""What a fusion layer of ours consists of: each part alone, both streams together.

Beside each part stands how close it comes to a ceiling: FLOPs to torch's own square matrix product,
bytes that it must move to torch's copy.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from benchmarks.case import Case, Run, Scope, Variant
from benchmarks.entries.layer import ONE, random_tokens
from benchmarks.ways import Task
from mbt_fast import bottleneck_attention
from mbt_fast.functional import bias_gelu, share_slots_

MOVED = {"norm, twice": 4, "residual, twice": 6, "gelu": 8}  # times the size of the streams
WIDTHS = {"qkv": 3, "proj": 1, "fc1": 4, "fc2": 4}  # of a Linear, in squares of the width


def cases(scope: Scope) -> Iterator[Case]:
    """Forward, one clip."""
    name = "mbt_tiny" if scope.smoke else "mbt_base"
    dtypes = (torch.bfloat16,) if scope.gpu else (torch.bfloat16, torch.float32)
    for dtype in dtypes:
        task = Task(name, "forward", 8 if scope.gpu else 1, dtype, ONE)
        yield Case(
            name="parts of a layer",
            mode="forward",
            shape=task.shape(),
            dtype=dtype,
            variants=partial(variants, task, scope),
        )


def variants(task: Task, scope: Scope) -> Mapping[str, Variant]:
    """The parts."""
    config = task.config
    (model,), _ = task.build([config], scope.device)
    layer, width, slots = model.layers[0], config.hidden_size, config.n_slots
    xs = [random_tokens(task, config.n_tokens(m) + slots, scope) for m in config.modalities]
    blocks = [layer.block_of(m) for m in config.modalities]
    packed = [block.attn.packed(x).detach() for block, x in zip(blocks, xs, strict=True)]
    hidden = [block.mlp.fc1(x).detach() for block, x in zip(blocks, xs, strict=True)]

    def each(run: Callable[..., object], inputs: list[Tensor]) -> Run:
        return lambda: [run(block, x) for block, x in zip(blocks, inputs, strict=True)]

    runs = {
        "norm, twice": each(lambda b, x: (norm(b.norm1, x), norm(b.norm2, x)), xs),
        "qkv": each(lambda b, x: apply_linear(b.attn.qkv, x), xs),
        "attention": lambda: bottleneck_attention(packed, slots),
        "proj": each(lambda b, x: apply_linear(b.attn.proj, x), xs),
        "residual, twice": each(lambda b, x: (x + x, x + x), xs),
        "fc1": each(lambda b, x: apply_linear(b.mlp.fc1, x), xs),
        "gelu": each(lambda b, x: bias_gelu(x), hidden),
        "fc2": each(lambda b, x: apply_linear(b.mlp.fc2, x), hidden),
        "shared slots": lambda: share_slots_(xs, slots),
    }
    rows = sum(x.shape[1] for x in xs)
    one = 2 * task.batch * rows * width**2
    flops = {name: count * one for name, count in WIDTHS.items()}
    flops["attention"] = 4 * task.batch * width * sum(x.shape[1] ** 2 for x in xs)
    size = task.batch * rows * width * task.dtype.itemsize
    return {
        name: Variant(
            run=torch.inference_mode()(run),
            flops=flops.get(name),
            bytes=MOVED[name] * size if name in MOVED else None,
        )
        for name, run in runs.items()
    }


def apply_linear(module: torch.nn.Linear, x: Tensor) -> Tensor:
    """A Linear, without the call of a module."""
    return linear(x, module.weight, module.bias)


def norm(module: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    """A LayerNorm, likewise."""
    return layer_norm(x, x.shape[-1:], module.weight, module.bias, module.eps)
