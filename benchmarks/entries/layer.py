"""One fusion layer, forward and step, against every other way to fuse.

Streams come as each way keeps them between layers: with their slots for ours, own tokens and slots
apart for eager, joined for shared weights. A step is forward and backward with random gradients.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks import eager
from benchmarks.case import Case, Scope, Variant
from benchmarks.ways import NO_SAVINGS, ON_GPU, Task, Way, ways
from mbt_fast.layers import FusionLayer, Savings

Tensors = Sequence[Tensor]
Run = Callable[[Tensors], list[Tensor]]
ONE = {"num_layers": 1, "fusion_layer": 0}


def cases(scope: Scope) -> Iterator[Case]:
    """Both modes; on a GPU batch 1, 8 and 64."""
    for task in tasks(scope):
        graph = task.mode == "forward" and task.batch <= 8
        built = partial(variants, task, scope)
        yield task.case("fusion layer", built, baseline="eager", graph=graph)


def tasks(scope: Scope) -> Iterator[Task]:
    """What is measured."""
    name = "mbt_tiny" if scope.smoke else "mbt_base"
    if scope.gpu:
        for mode, batch in ON_GPU:
            yield Task(name, mode, batch, torch.bfloat16, ONE)
        return
    for mode in ("forward", "step"):
        for dtype in (torch.bfloat16, torch.float32):
            yield Task(name, mode, 1, dtype, ONE)


def variants(task: Task, scope: Scope) -> Mapping[str, Variant]:
    """Ours, and every other way, with the same weights on the same tokens."""
    others = ways(scope.device)
    configs = [task.config, *(way.config(task.config) for way in others.values())]
    models, _ = task.build(configs, scope.device)
    layers = [model.layers[0] for model in models]
    own = {m: random_tokens(task, task.config.n_tokens(m), scope) for m in task.config.modalities}
    slots = random_tokens(task, task.config.n_slots, scope)
    found = {"ours": ours(task, layers[0], own, slots)}
    for (name, way), layer in zip(others.items(), layers[1:], strict=True):
        found[name] = other(task, way, layer, own, slots)
    return found


def ours(
    task: Task, layer: FusionLayer, own: dict[str, Tensor], slots: Tensor, memory: str = "full"
) -> Variant:
    """Our layer, which keeps as much for the backward as ``memory`` says."""
    savings = Savings(**{**NO_SAVINGS, "memory": memory})

    def run(leaves: Tensors) -> list[Tensor]:
        layer.set_savings(savings)  # in every call, because variants may share the layer
        streams = dict(zip(own, leaves, strict=True))
        return list(layer(streams, {}, n_slots=slots.shape[1]).values())

    joined = [torch.cat([x, slots], dim=1) for x in own.values()]
    return _variant(task, run, joined, layer, task.flops(task.config).layers[0].total)


def other(
    task: Task, way: Way, layer: FusionLayer, own: dict[str, Tensor], slots: Tensor
) -> Variant:
    """A layer on stock PyTorch."""
    config = way.config(task.config)
    streams = eager.joined(own) if config.share_encoder else own
    extra = [slots] if config.n_slots else []
    fuse = eager.compiled_once(way.fuse) if way.compiled else way.fuse

    def run(leaves: Tensors) -> list[Tensor]:
        given = dict(zip(streams, leaves, strict=False))
        fused, updated = fuse(layer, given, leaves[-1] if extra else None, way.kernel)
        return [*fused.values(), *([] if updated is None else [updated])]

    flops = task.flops(config, way.cost).layers[0].total
    return _variant(task, run, [*streams.values(), *extra], layer, flops, way.compiled)


def _variant(
    task: Task, run: Run, inputs: Tensors, layer: FusionLayer, flops: int, compiled: bool = False
) -> Variant:
    """Forward without gradients, or forward and backward."""
    flops = task.batch * flops
    if task.mode == "forward":
        forward = torch.inference_mode()(lambda: run(inputs))
        return Variant(run=forward, flops=flops, compiled=compiled)
    leaves = [x.clone().requires_grad_() for x in inputs]
    parameters = list(layer.parameters())
    grads: list[Tensor] = []

    def step() -> object:
        outs = run(leaves)
        if not grads:
            grads.extend(torch.randn_like(out) for out in outs)
        return torch.autograd.grad(outs, [*leaves, *parameters], grads)

    return Variant(
        run=step,
        flops=flops,
        saves=lambda: run(leaves),
        apart_from=tuple(parameters),
        compiled=compiled,
    )


def random_tokens(task: Task, rows: int, scope: Scope) -> Tensor:
    """``[B, rows, C]``."""
    width = task.config.hidden_size
    return torch.randn(task.batch, rows, width, device=scope.device, dtype=task.dtype)
