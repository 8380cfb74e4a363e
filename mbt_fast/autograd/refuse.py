"""The answers of Functions that are differentiable once, and in reverse."""

from collections.abc import Iterable
from typing import NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_second_derivative(backend: str) -> NoReturn:
    """Raise, and say who can."""
    raise NotImplementedError(
        f"backend {backend!r} is differentiable once; for second derivatives use "
        "backend='reference'"
    )


def refuse_forward_mode(backend: str, tensors: Iterable[Tensor | None]) -> None:
    """Raise if a tensor has a tangent, which an operator without a formula would drop silently."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(
            f"backend {backend!r} has no forward-mode derivatives; use backend='reference'"
        )
