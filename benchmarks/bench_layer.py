"""One fusion layer: forward, training step, what it keeps for the backward, what the host pays.

Streams come as each way keeps them between layers: with their slots for ours, own tokens and slots
separately for eager, joined for shared weights.
"""

import cProfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mbt_fast
from benchmarks import baselines, models
from benchmarks.calls import (
    BACKEND,
    BATCHES,
    DEVICE,
    Call,
    doubled,
    forward,
    parametrized_by_dtype,
    random_like,
)
from mbt_fast import MBT
from mbt_fast.flops import forward_flops, training_flops
from mbt_fast.testing import saved_bytes

ONE = {"num_layers": 1, "fusion_layer": 0}


class Subject(NamedTuple):
    """One way to compute the layer: a function of token tensors, and the weights it uses."""

    run: Callable[..., list[Tensor]]
    tokens: list[Tensor]
    layer: torch.nn.Module

    def forward(self) -> Call:
        """Without gradients."""
        return forward(self.run, self.tokens, self.tokens[0].dtype)

    def step(self, dtype: torch.dtype, grads: Sequence[Tensor] | None = None) -> Call:
        """Forward and backward, with gradients that are random in ``dtype`` if none are given."""
        leaves = [x.detach().requires_grad_() for x in self.tokens]
        wanted = [*leaves, *self.layer.parameters()]
        given = list(grads or [])

        def run() -> list[Tensor]:
            outs = self.run(*leaves)
            if not given:
                given.extend(random_like(out, dtype) for out in outs)
            return [*outs, *torch.autograd.grad(outs, wanted, given)]

        return run

    def saved_bytes(self) -> int:
        """What a forward keeps for the backward, apart from the weights."""
        leaves = [x.detach().requires_grad_() for x in self.tokens]
        return saved_bytes(lambda: self.run(*leaves), self.layer.parameters())


def ours(model: MBT, own: Mapping[str, Tensor], slots: Tensor) -> Subject:
    """Our layer, on streams with their slots."""
    layer, count = model.layers[0], slots.shape[1]

    def run(*streams: Tensor) -> list[Tensor]:
        return list(layer(dict(zip(own, streams, strict=True)), {}, n_slots=count).values())

    return Subject(run, [torch.cat([x, slots], dim=1) for x in own.values()], layer)


def stock(model: MBT, fuse: baselines.Fuse, own: Mapping[str, Tensor], slots: Tensor) -> Subject:
    """A layer on stock PyTorch."""
    streams = baselines.joined(dict(own)) if model.config.share_encoder else own
    extra = [slots] if model.config.n_slots else []

    def run(*tokens: Tensor) -> list[Tensor]:
        given = dict(zip(streams, tokens, strict=False))
        fused, updated = fuse(model.layers[0], given, tokens[-1] if extra else None)
        return [*fused.values(), *([] if updated is None else [updated])]

    return Subject(run, [*streams.values(), *extra], model.layers[0])


def other_fusions(model: MBT, own: Mapping[str, Tensor], slots: Tensor) -> dict[str, Subject]:
    """The variants of vanilla fusion, which compute something else."""
    own_weights = models.with_weights_of(model, **models.VANILLA)
    shared = models.with_weights_of(model, **models.VANILLA_SHARED)
    return {
        "vanilla, own weights": stock(own_weights, baselines.vanilla_own, own, slots),
        "vanilla, shared weights": stock(shared, baselines.unimodal, own, slots),
        "vanilla, official": stock(own_weights, baselines.vanilla_official, own, slots),
    }


def tokens_of(model: MBT, batch: int) -> tuple[dict[str, Tensor], Tensor]:
    """Random own tokens and slots."""
    config, weight = model.config, model.norm.weight

    def random(rows: int) -> Tensor:
        return torch.randn(batch, rows, config.hidden_size, device=weight.device).to(weight)

    return {m: random(config.n_tokens(m)) for m in config.modalities}, random(config.n_slots)


def as_eager(outs: Sequence[Tensor], slots: int) -> list[Tensor]:
    """Own rows of our streams, then the slots, which all streams share."""
    return [*(out[:, :-slots] for out in outs), outs[0][:, -slots:]]


def gradients_as_eager(results: Sequence[Tensor], streams: int, slots: int) -> list[Tensor]:
    """The same of a step: outputs, gradients of the streams, gradients of the weights."""
    outs, grads, weights = results[:streams], results[streams : 2 * streams], results[2 * streams :]
    of_slots = torch.stack([grad[:, -slots:] for grad in grads]).sum(dim=0)
    of_own = [grad[:, :-slots] for grad in grads]
    return [*as_eager(outs, slots), *of_own, of_slots, *weights]


def gradients_for_ours(grads: Sequence[Tensor]) -> list[Tensor]:
    """What eager gets for the slots goes to those of our first stream."""
    *own, slots = grads
    zeros = torch.zeros_like(slots)
    return [torch.cat([g, zeros if i else slots], dim=1) for i, g in enumerate(own)]


@parametrized_by_dtype()
@pytest.mark.parametrize("batch", BATCHES)
def test_forward(race, dtype, batch):
    model = models.build("mbt_tiny" if race.tiny else "mbt_base", dtype, DEVICE, **ONE).eval()
    own, slots = tokens_of(model, batch)
    equal = {"eager": stock(model, baselines.bottleneck, own, slots)}
    if not race.tiny:
        fuse = baselines.compiled(baselines.bottleneck)
        equal["eager, compiled"] = stock(model, fuse, own, slots)
    wide = doubled((own, slots))
    double = models.double(model)
    race(
        ours(model, own, slots).forward(),
        {name: subject.forward() for name, subject in equal.items()},
        exact=stock(double, baselines.bottleneck, *wide).forward(),
        unequal={n: s.forward() for n, s in other_fusions(model, own, slots).items()},
        view=lambda outs: as_eager(outs, slots.shape[1]),
        flops=batch * forward_flops(model.config).layers[0].total,
        scale=8,
        graph=batch <= 8,
        memory=True,
        case="fusion layer",
        mode="forward",
        **models.facts_of(model, batch),
    )


@parametrized_by_dtype()
@pytest.mark.parametrize("batch", BATCHES)
def test_training_step(race, dtype, batch):
    model = models.build("mbt_tiny" if race.tiny else "mbt_base", dtype, DEVICE, **ONE).train()
    own, slots = tokens_of(model, batch)
    eager = stock(model, baselines.bottleneck, own, slots)
    equal = {"eager": eager.step(dtype)}
    if not race.tiny:
        fuse = baselines.compiled(baselines.bottleneck)
        equal["eager, compiled"] = stock(model, fuse, own, slots).step(dtype)
    saved = {"eager": eager.saved_bytes()}
    for recompute in ("none", "norms", "mlp"):
        other = models.with_weights_of(model).set_execution(recompute=recompute)
        subject = ours(other, own, slots)
        saved[f"ours, recompute {recompute}"] = subject.saved_bytes()
        if recompute == "norms":
            equal[f"ours, recompute {recompute}"] = _in_eagers_form(subject, dtype, slots)
    wide = doubled((own, slots))
    grads = [random_like(x, dtype) for x in eager.tokens]
    race(
        ours(model, own, slots).step(dtype, gradients_for_ours(grads)),
        equal,
        exact=stock(models.double(model), baselines.bottleneck, *wide).step(dtype),
        unequal={n: s.step(dtype) for n, s in other_fusions(model, own, slots).items()},
        view=lambda results: gradients_as_eager(results, len(own), slots.shape[1]),
        flops=batch * training_flops(model.config).layers[0].total,
        scale=12,
        memory=True,
        saved_bytes=saved,
        case="fusion layer",
        mode="training step",
        **models.facts_of(model, batch),
    )


def _in_eagers_form(subject: Subject, dtype: torch.dtype, slots: Tensor) -> Call:
    """A step of ours that can stand among the baselines; slicing costs next to nothing."""
    own = [x[:, : -slots.shape[1]] for x in subject.tokens]
    grads = gradients_for_ours([random_like(x, dtype) for x in (*own, slots)])
    step = subject.step(dtype, grads)
    return lambda: gradients_as_eager(step(), len(own), slots.shape[1])


@parametrized_by_dtype()
def test_host_cost(race, dtype):
    """A layer so small that the host is the clock; against the same layer on stock PyTorch."""
    torch.set_num_threads(1)
    model = models.build("mbt_tiny", dtype, DEVICE, **ONE).eval()
    own, slots = tokens_of(model, 1)
    variants = {
        name: ours(models.with_weights_of(model).eval().set_backend(name), own, slots).forward()
        for name in (BACKEND, "sdpa")
    }
    double = models.double(model).set_backend("reference")
    wide = doubled((own, slots))
    calls = 1 if race.tiny else 10

    def repeated(run: Call) -> Call:
        return lambda: [run() for _ in range(calls)][-1]

    race(
        repeated(variants[BACKEND]),
        {"sdpa": repeated(variants["sdpa"])},
        exact=ours(double, *wide).forward(),
        calls=calls,
        case="tiny layer",
        backend=BACKEND,
        mode="forward",
        **models.facts_of(model, 1),
        python_calls={name: count_python_calls(run) for name, run in variants.items()},
        operators={name: count_operators(run) for name, run in variants.items()},
    )


def count_python_calls(run: Call) -> int:
    """Calls of functions of this library, comprehensions apart, in a second run."""
    run()
    with cProfile.Profile(builtins=False) as profile:
        run()
    package, inner = str(Path(mbt_fast.__file__).parent), ("comp>", "<genexpr>")
    codes = [(entry.code, entry.callcount) for entry in profile.getstats()]
    return sum(
        count
        for code, count in codes
        if not isinstance(code, str)
        and code.co_filename.startswith(package)
        and not code.co_name.endswith(inner)
    )


def count_operators(run: Call) -> int:
    """Operators that write memory: neither views nor allocations."""
    with _Counter() as counter:
        run()
    return counter.count


class _Counter(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = _addresses(result) - _addresses((args, kwargs))
        self.count += bool(func._schema.is_mutable or made) and "empty" not in func.__name__
        return result


def _addresses(tree: Any) -> set[int]:
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}
