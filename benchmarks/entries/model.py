"""The whole model, forward and step, against every other way to fuse.

Ways on stock PyTorch are compiled layer by layer. A step is forward, loss and backward.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case, Run, Scope, Variant
from benchmarks.ways import NO_SAVINGS, ON_GPU, Task, ways
from mbt_fast import MBT


def cases(scope: Scope) -> Iterator[Case]:
    """Both modes; on a GPU batch 1, 8 and 64; on a CPU one clip, a step of the small model only."""
    for task in tasks(scope):
        graph = task.mode == "forward" and task.batch <= 8
        built = partial(variants, task, scope)
        yield task.case("model", built, baseline="eager", graph=graph)


def tasks(scope: Scope) -> Iterator[Task]:
    """What is measured."""
    half, single = torch.bfloat16, torch.float32
    if scope.smoke:
        yield from (Task("mbt_tiny", mode, 1, single) for mode in ("forward", "step"))
    elif scope.gpu:
        yield from (Task("mbt_base", mode, batch, half) for mode, batch in ON_GPU)
    else:
        yield from (Task("mbt_base", "forward", 1, dtype) for dtype in (half, single))
        yield Task("mbt_small", "step", 1, half)


def variants(task: Task, scope: Scope) -> Mapping[str, Variant]:
    """Ours in full and with all savings, and every other way, with the same weights."""
    others = ways(scope.device)
    if task.dtype == torch.float32 and not scope.smoke:  # slow: against the baseline alone
        others = {"eager": others["eager"]}
    configs = [task.config, *(way.config(task.config) for way in others.values())]
    models, inputs = task.build(configs, scope.device)
    found = {"ours": ours(task, models[0], inputs, NO_SAVINGS)}
    saving = {"cls_only": True, "skip_dropped": True, "memory": "reduced"}
    found["ours, savings"] = ours(task, models[0], inputs, saving)
    if scope.gpu and task.mode == "forward":
        found["ours, captured"] = captured(task, models[0], inputs)
    for (name, way), model in zip(others.items(), models[1:], strict=True):
        found[name] = Variant(
            run=run(task, model, partial(way.forward, model, inputs)),
            flops=task.batch * task.flops(model.config, way.cost).total,
            compiled=way.compiled,
        )
    return found


def ours(
    task: Task, model: MBT, inputs: Mapping[str, Tensor], savings: Mapping[str, Any]
) -> Variant:
    """Our model; what it saves is set anew in every call, because variants share it."""
    return Variant(
        run=run(task, model, lambda: model.set_savings(**savings)(inputs)),
        flops=task.batch * task.flops(model.config, cls_only=savings["cls_only"]).total,
    )


def captured(task: Task, model: Any, inputs: Mapping[str, Tensor]) -> Variant:
    """Our model as a CUDA graph, captured in the first call."""
    graphs: list[Run] = []

    def replay() -> object:
        if not graphs:
            graph = model.set_savings(**NO_SAVINGS).capture(inputs)
            graphs.append(lambda: graph(inputs))
        return graphs[0]()

    flops = task.batch * task.flops(model.config).total
    return Variant(run=replay, flops=flops, replayable=False)


def run(task: Task, model: MBT, logits: Run) -> Run:
    """In inference mode; or with a loss and a backward."""
    if task.mode == "forward":
        return torch.inference_mode()(logits)

    def step() -> None:
        logits().square().sum().backward()  # type: ignore[attr-defined]
        model.zero_grad(set_to_none=True)

    return step
