"""One operator of torch for every op and kernel backend, all made here.

An op takes lists with an entry per stream, a tensor or ``None``, and then options; its results are
lists too. ``Operator`` holds what is true of the op on any backend: schema, shapes, what the
backward needs, FLOPs. From that and the launchers of a backend come the torch operators
``mbt_fast::<op>_fwd.<backend>`` and ``_bwd.<backend>`` with their fake kernels and batching rules,
and the ``autograd.Function`` around them. Gradients are differentiable once, and in reverse.

Registered by ``define``/``impl``, which costs less per call than ``custom_op``. The Function is not
put behind the operator by ``register_autograd``, because ``torch.func.grad`` cannot see through
that (torch 2.13).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

from mbt_fast.ops import vmap
from mbt_fast.ops.flop_counter import count_flops

LIBRARY = torch.library.Library("mbt_fast", "DEF")

Entries = Sequence[Tensor | None]  # one per stream
Groups = tuple[list[Any], ...]


def _no_backward(*arguments: Any) -> NoReturn:
    raise NotImplementedError("nothing recomputes this op")


@dataclass(frozen=True, eq=False)
class Implementation:
    """An op on one backend: what dispatch leads to, and what a backward keeps hold of.

    Args:
        run: The op, differentiable: lists and options to groups of results.
        bwd: From the arguments of the op's backward to a flat list of gradients; for callers that
            recompute activations.
    """

    run: Callable[..., Groups]
    bwd: Callable[..., Sequence[Any]] = _no_backward


class Operator:
    """What is true of an op on every backend; a subclass per op.

    Attributes:
        name: Of the op.
        forward: Schema of the arguments: ``lists`` lists first, then options.
        backward: Schema of the arguments of the backward.
        lists: How many lists the forward takes.
        inputs: How many of these, the first ones, may require gradients.
        outputs: How many groups of results, the first ones, have gradients.
        groups: How many groups of results there are; all but the last have an entry per stream.
        materialize_grads: Whether a missing gradient reaches ``differentiate`` as zeros.
    """

    name: str
    forward: str
    backward: str
    lists: int
    inputs: int
    outputs: int
    groups: int
    materialize_grads = False

    def results(self, *arguments: Any) -> Groups:
        """Fresh memory for what the forward fills; one group for each kind of result."""
        raise NotImplementedError

    def gradients(self, *arguments: Any) -> Groups:
        """Fresh memory for what the backward fills."""
        raise NotImplementedError

    def save(self, lists: Groups, results: Groups) -> Groups:
        """What the backward needs."""
        raise NotImplementedError

    def differentiate(
        self, bwd: Callable[..., Sequence[Tensor]], grads: Groups, saved: Groups, *options: Any
    ) -> Groups:
        """Gradients of the first ``inputs`` lists, by ``bwd``; those of ``None`` do not matter.

        Args:
            bwd: The operator of the backward.
            grads: Of the first ``outputs`` groups of results, ``None`` where there is none.
            saved: What ``save`` returned.
            options: Of the call.
        """
        raise NotImplementedError

    def flops(self, *shapes: Any, **kwargs: Any) -> int:
        """Of the forward, from the shapes of its arguments; 0 for element-wise work."""
        return 0

    def flops_backward(self, *shapes: Any, **kwargs: Any) -> int:
        """Of the backward."""
        return 0

    def batching_rules(self, fwd: Any, bwd: Any) -> tuple[vmap.Rule, vmap.Rule]:
        """How vmap batches the two operators."""
        return vmap.loop(fwd), vmap.loop(bwd)

    def register(
        self, backend: str, launch: Callable[..., None], launch_backward: Callable[..., None]
    ) -> Implementation:
        """The op on a kernel backend.

        Args:
            backend: Its name, that of the operators' overload.
            launch: Takes the groups of ``results`` to fill, and then the arguments.
            launch_backward: Likewise, with those of ``gradients``.
        """
        fwd = self._define("fwd", backend, self.forward, self.results, launch)
        bwd = self._define("bwd", backend, self.backward, self.gradients, launch_backward)
        for packet, formula in ((fwd, self.flops), (bwd, self.flops_backward)):
            count_flops(packet.overloadpacket, formula)
        for operator, rule in zip((fwd, bwd), self.batching_rules(fwd, bwd), strict=True):
            torch.library.register_vmap(operator, rule, lib=LIBRARY)
        once = _once_differentiable(backend, bwd)
        return Implementation(_differentiable(self, backend, fwd, once), once)

    def _define(
        self,
        direction: str,
        backend: str,
        schema: str,
        allocate: Callable[..., Groups],
        launch: Callable[..., None],
    ) -> Any:
        """A torch operator that allocates its results and has them filled."""
        name = f"{self.name}_{direction}.{backend}"
        LIBRARY.define(f"{name}({schema}) -> Tensor[]")

        def fill(*arguments: Any) -> list[Tensor]:
            groups = allocate(*arguments)
            launch(*groups, *arguments)
            return list(chain.from_iterable(groups))

        def fake(*arguments: Any) -> list[Tensor]:
            return list(chain.from_iterable(allocate(*arguments)))

        torch.library.impl(LIBRARY, name, "CompositeExplicitAutograd")(fill)
        torch.library.register_fake(f"mbt_fast::{name}", fake, lib=LIBRARY)
        return getattr(getattr(torch.ops.mbt_fast, f"{self.name}_{direction}"), backend)


def split(flat: Sequence[Any], size: int, groups: int) -> Groups:
    """A flat list in groups of ``size`` entries, but for the last, which has the rest."""
    last = (groups - 1) * size
    return (*(list(flat[i : i + size]) for i in range(0, last, size)), list(flat[last:]))


def filled(grads: Entries, like: Sequence[Tensor]) -> list[Tensor]:
    """Gradients, zero where there is none."""
    pairs = zip(grads, like, strict=True)
    return [torch.zeros_like(tensor) if grad is None else grad for grad, tensor in pairs]


def _differentiable(op: Operator, backend: str, fwd: Any, bwd: Any) -> Callable[..., Groups]:
    """The op with gradients, through an ``autograd.Function``."""

    class Function(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(n_options: int, *arguments: Any) -> tuple[Tensor, ...]:
            return tuple(fwd(*_lists(op, arguments[n_options:]), *arguments[:n_options]))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ctx.options, tensors = inputs[1 : inputs[0] + 1], inputs[inputs[0] + 1 :]
            ctx.streams = len(tensors) // op.lists
            ctx.given = [tensor is not None for tensor in tensors]
            saved = op.save(_lists(op, tensors), split(output, ctx.streams, op.groups))
            ctx.saved_sizes = [len(group) for group in saved]
            ctx.save_for_backward(*chain.from_iterable(saved))
            ctx.mark_non_differentiable(*output[ctx.streams * op.outputs :])
            ctx.set_materialize_grads(op.materialize_grads)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            nothing = (None,) * (1 + len(ctx.options))
            if all(grad is None for grad in grads):
                return (*nothing, *(None for _ in ctx.given))
            saved = _cut(ctx.saved_tensors, ctx.saved_sizes)
            arriving = split(grads, ctx.streams, op.groups)[: op.outputs]
            found = chain.from_iterable(op.differentiate(bwd, arriving, saved, *ctx.options))
            mine = [grad if given else None for grad, given in zip(found, ctx.given, strict=False)]
            return (*nothing, *mine, *(None for _ in ctx.given[len(mine) :]))

    named: Any = type(type(op).__name__, (Function,), {})  # as nodes of a graph and traces show it

    def run(*arguments: Any) -> Groups:
        lists, options = arguments[: op.lists], arguments[op.lists :]
        if forward_ad._current_level >= 0 and not torch.compiler.is_compiling():
            _refuse_forward_mode(backend, lists)
        if torch.is_grad_enabled() and _requires_grad(lists[: op.inputs]):
            flat = named.apply(len(options), *options, *chain.from_iterable(lists))
        else:  # quicker; and Dynamo cannot trace the Function where nothing requires a gradient
            flat = fwd(*arguments)
        return split(flat, len(lists[0]), op.groups)

    return run


def _lists(op: Operator, tensors: Sequence[Any]) -> Groups:
    """The lists of a call, which all have an entry per stream."""
    return split(tensors, len(tensors) // op.lists, op.lists)


def _cut(flat: Sequence[Any], sizes: Sequence[int]) -> Groups:
    """A flat list in groups of these sizes."""
    ends = list(accumulate(sizes))
    return tuple(list(flat[end - size : end]) for end, size in zip(ends, sizes, strict=True))


def _requires_grad(lists: Sequence[Entries]) -> bool:
    for entries in lists:
        for tensor in entries:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def _once_differentiable(backend: str, bwd: Callable[..., Any]) -> Callable[..., Sequence[Tensor]]:
    """``bwd``, whose result refuses to be differentiated and says who can."""

    def run(*arguments: Any) -> Sequence[Tensor]:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return bwd(*arguments)
        flat, spec = tree_flatten(arguments)
        return _OnceDifferentiable.apply(
            backend, lambda *tensors: tuple(bwd(*tree_unflatten(tensors, spec))), *flat
        )

    return run


class _OnceDifferentiable(torch.autograd.Function):
    """What a backward operator returns, which has no derivative of its own.

    ``torch.autograd.function.once_differentiable`` does not serve under ``torch.func``.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(backend: str, bwd: Callable[..., Any], *arguments: Any) -> Any:
        return bwd(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.backend = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise NotImplementedError(
            f"backend {ctx.backend!r} is differentiable once; for second derivatives use "
            "backend='reference'"
        )


def _refuse_forward_mode(backend: str, lists: Sequence[Entries]) -> None:
    """Raise if a tensor has a tangent, which an operator without a formula would drop silently."""
    tensors = [tensor for entries in lists for tensor in entries if tensor is not None]
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(
            f"backend {backend!r} has no forward-mode derivatives; use backend='reference'"
        )
