"""What the Functions that recompute have in common."""

from typing import Any, NoReturn

import torch
from torch import Tensor

Grads = tuple[Tensor | None, ...]


class Recomputing(torch.autograd.Function):
    """Saves inputs alone, and computes again in the backward what else that needs.

    Its backward is made of differentiable operations on saved inputs, so that second derivatives
    are right; or refused, by name, where a kernel takes part that has none.
    """

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        """Refuse, and say what has forward-mode derivatives."""
        raise NotImplementedError(
            "a block that recomputes activations has no forward-mode derivatives; use "
            "set_savings(memory='full')"
        )


def linear_backward(dout: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, ...]) -> Grads:
    """Gradients of ``x @ weight.T + bias`` for ``x``, ``weight`` and ``bias``, where needed."""
    rows = dout.flatten(0, -2)
    dx = dout @ weight if needs[0] else None
    dweight = rows.T @ x.flatten(0, -2) if needs[1] else None
    dbias = rows.sum(dim=0) if needs[2] else None
    return dx, dweight, dbias
