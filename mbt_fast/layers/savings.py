"""What an MBT need neither compute nor keep."""

from dataclasses import dataclass

MEMORIES = ("full", "reduced", "minimal")


@dataclass(frozen=True)
class Savings:
    """Work that is left out without changing a result, each part on its own.

    Args:
        cls_only: Compute the last layer for the CLS rows alone, which are all that the head reads:
            every row serves as key and value, and nothing else of the other rows is computed. Not
            under dropout. Off by default, because a hook on that layer sees the difference, and so
            does a FLOP counter.
        skip_dropped: In training, compute a residual branch only for the examples for which
            stochastic depth keeps it. Not under dropout, whose masks are drawn for every element,
            nor under ``torch.compile`` or in a captured CUDA graph, where the host decides nothing.
        memory: What a block saves for its backward: ``"full"``, whatever autograd saves;
            ``"reduced"``, no output of LayerNorm and GELU, which are computed again; ``"minimal"``,
            nor the first product of the MLP. Modules that are replaced or have hooks, and an MLP
            under dropout, save as with ``"full"``; so does everything under ``torch.compile``,
            which chooses by itself.

    Raises:
        TypeError: A switch is not a bool.
        ValueError: ``memory`` is none of the three.
    """

    cls_only: bool = False
    skip_dropped: bool = True
    memory: str = "reduced"

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("cls_only", "skip_dropped"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        if self.memory not in MEMORIES:
            raise ValueError(f"memory must be one of {', '.join(MEMORIES)}, got {self.memory!r}")
