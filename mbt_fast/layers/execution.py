"""How an MBT is executed: what it neither computes nor keeps, without changing a result."""

from dataclasses import dataclass

RECOMPUTE = ("none", "norms", "mlp")


@dataclass(frozen=True)
class Execution:
    """Options that change speed and memory, never a result.

    Args:
        cls_only: Compute the last layer for the CLS rows alone, which are all that the head reads:
            every row serves as key and value, and nothing else of the other rows is computed. Not
            under dropout. Off by default, because forward hooks and FLOP counters on the last layer
            would see fewer rows.
        skip_dropped: In training, compute a residual branch only for the examples for which
            stochastic depth keeps it. Not under dropout, whose masks are drawn for every element,
            nor under ``torch.compile`` or in a captured CUDA graph, where the host decides nothing.
        recompute: Activations that a block computes again in the backward instead of keeping them:
            ``"none"``; ``"norms"``, outputs of LayerNorm and GELU; ``"mlp"``, also the first
            product of the MLP. Modules that are replaced or have hooks, and an MLP under dropout,
            keep theirs; so does everything under ``torch.compile``, which chooses by itself.

    Raises:
        TypeError: A switch is not a bool.
        ValueError: ``recompute`` is none of the three.
    """

    cls_only: bool = False
    skip_dropped: bool = True
    recompute: str = "norms"

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("cls_only", "skip_dropped"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        if self.recompute not in RECOMPUTE:
            choices = ", ".join(RECOMPUTE)
            raise ValueError(f"recompute must be one of {choices}, got {self.recompute!r}")
