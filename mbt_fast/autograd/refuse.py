"""The answer of every Function that is differentiable once."""

from typing import NoReturn


def refuse_second_derivative(backend: str) -> NoReturn:
    """Raise, and say who can."""
    raise NotImplementedError(
        f"backend {backend!r} is differentiable once; for second derivatives use "
        "backend='reference'"
    )
