"""What an MBT need not compute."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Savings:
    """Work that is left out without changing a result, each part on its own.

    Args:
        cls_only: Compute the last layer for the CLS rows alone, which are all that the head reads:
            every row serves as key and value, and nothing else of the other rows is computed.

    Raises:
        TypeError: A field has the wrong type.
    """

    cls_only: bool = True

    def __post_init__(self) -> None:
        """Check every field."""
        if not isinstance(self.cls_only, bool):
            raise TypeError(f"cls_only must be a bool, got {self.cls_only!r}")
