"""Each exact saving on and off, against eager PyTorch and against none.

forward    all rows of the last layer, or CLS rows only
step       forward and backward, each saving alone and all together
depth      a step under stochastic depth, by drop rate, dropped branches masked or skipped
kept       what one fusion layer keeps for its backward: counted, not timed
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import torch

from benchmarks.case import Case, Run, Scope, Variant
from benchmarks.entries import layer, model
from benchmarks.ways import NO_SAVINGS, WAYS, Task
from mbt_fast.layers.savings import MEMORIES

TOGETHER: dict[str, Any] = {"cls_only": True, "skip_dropped": True, "memory": "reduced"}
SAVINGS: dict[str, dict[str, Any]] = {
    "ours": NO_SAVINGS,
    "ours, cls_only": {**NO_SAVINGS, "cls_only": True},
    "ours, memory reduced": {**NO_SAVINGS, "memory": "reduced"},
    "ours, memory minimal": {**NO_SAVINGS, "memory": "minimal"},
    "ours, savings": TOGETHER,
}
OF_FORWARD = ("ours", "ours, cls_only")  # the others are about training
DROP_RATES = (0.0, 0.3, 0.6)
SHORT = {"rgb": (1, 224, 224), "spectrogram": (192, 128)}  # so that a batch of 8 does not take long


def cases(scope: Scope) -> Iterator[Case]:
    """On a CPU steps are those of MBT-S."""
    large = "mbt_tiny" if scope.smoke else "mbt_base"
    trained = large if scope.gpu or scope.smoke else "mbt_small"
    batch = 8 if scope.gpu else 1
    dtypes = (torch.bfloat16,) if scope.gpu else (torch.bfloat16, torch.float32)
    for dtype in dtypes:
        one = Task(large, "step", 1, dtype, layer.ONE)
        yield one.case("kept", partial(kept, one, scope), baseline="eager", timed=False)
    for dtype in dtypes:
        for name, mode in ((large, "forward"), (trained, "step")):
            task = Task(name, mode, batch, dtype)
            yield task.case(mode, partial(on_and_off, task, scope), baseline="eager")
    for rate in DROP_RATES:
        changes = {"stochastic_depth": rate, **({} if scope.smoke else {"input_size": SHORT})}
        task = Task(trained, "step", 8, torch.bfloat16, changes)
        case = task.case("depth", partial(depth, task, scope), baseline="ours, masked")
        yield replace(case, shape=case.shape | {"stochastic_depth": rate})


def on_and_off(task: Task, scope: Scope) -> Mapping[str, Variant]:
    """Eager PyTorch, and ours with each saving."""
    (built,), inputs = task.build([task.config], scope.device)
    eager = partial(WAYS["eager"].forward, built, inputs)
    flops = task.batch * task.flops(task.config).total
    found = {"eager": Variant(run=model.run(task, built, eager), flops=flops)}
    for name in SAVINGS if task.mode == "step" else OF_FORWARD:
        found[name] = model.ours(task, built, inputs, SAVINGS[name])
    return found


def depth(task: Task, scope: Scope) -> Mapping[str, Variant]:
    """Every call draws other survivors, the same ones for both variants."""
    (built,), inputs = task.build([task.config], scope.device)

    def seeded(skip: bool) -> Run:
        seeds = count()

        def logits() -> object:
            torch.manual_seed(next(seeds))
            return built.set_savings(**{**TOGETHER, "skip_dropped": skip})(inputs)

        return model.run(task, built, logits)

    return {
        f"ours, {name}": Variant(run=seeded(skip))
        for name, skip in (("masked", False), ("skipped", True))
    }


def kept(task: Task, scope: Scope) -> Mapping[str, Variant]:
    """A fusion layer, eager and ours."""
    (built,), _ = task.build([task.config], scope.device)
    config, one = task.config, built.layers[0]
    own = {m: layer.random_tokens(task, config.n_tokens(m), scope) for m in config.modalities}
    slots = layer.random_tokens(task, config.n_slots, scope)
    found = {"eager": layer.other(task, WAYS["eager"], one, own, slots)}
    for memory in MEMORIES:
        found[f"ours, memory {memory}"] = layer.ours(task, one, own, slots, memory)
    return found
