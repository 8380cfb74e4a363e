"""The answers of Functions that are differentiable once, and in reverse."""

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad


class FirstDerivative(torch.autograd.Function):
    """What a backward operator returns, which has no derivative of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(backend: str, backward: Callable[..., Any], *arguments: Any) -> Any:
        """Run the backward operator."""
        return backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the name of the backend, for the refusal."""
        ctx.backend = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        """Refuse, and say who can."""
        raise NotImplementedError(
            f"backend {ctx.backend!r} is differentiable once; for second derivatives use "
            "backend='reference'"
        )


def first_derivative(backend: str, backward: Callable[..., Any], *arguments: Any) -> Any:
    """What ``backward`` returns for these arguments; a derivative of it is refused."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return FirstDerivative.apply(backend, backward, *arguments)
    return backward(*arguments)


def refuse_forward_mode(backend: str, tensors: Iterable[Tensor | None]) -> None:
    """Raise if a tensor has a tangent, which an operator without a formula would drop silently."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(
            f"backend {backend!r} has no forward-mode derivatives; use backend='reference'"
        )
