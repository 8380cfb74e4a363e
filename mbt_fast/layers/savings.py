"""What an MBT need not compute."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Savings:
    """Work that is left out without changing a result, each part on its own.

    Args:
        cls_only: Compute the last layer for the CLS rows alone, which are all that the head reads:
            every row serves as key and value, and nothing else of the other rows is computed. Not
            under dropout.
        skip_dropped: In training, compute a residual branch only for the examples for which
            stochastic depth keeps it. Not under dropout, whose masks are drawn for every element,
            nor under ``torch.compile`` or in a captured CUDA graph, where the host decides nothing.

    Raises:
        TypeError: A field has the wrong type.
    """

    cls_only: bool = True
    skip_dropped: bool = True

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("cls_only", "skip_dropped"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
