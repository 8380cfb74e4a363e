"""Errors that a user, not a programmer, has to mend."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A file, checkpoint or flag cannot be used; the message is one line and says why.

    The command line prints it and exits with code 2, without a traceback.
    """

    def __init__(self, message: str) -> None:
        """Escape what is not printable: names that stand in a file may hold line breaks."""
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


class ClipError(InputError):
    """A clip cannot be decoded, or holds nothing that the model takes."""


class RunError(InputError):
    """A training run cannot go on; what it has done until its last checkpoint is kept."""


class CheckpointError(InputError):
    """Weights cannot be read, or do not fit the configuration."""


@contextmanager
def as_input_error() -> Iterator[None]:
    """In a command: what the library refuses comes from the user's flags.

    Raises:
        InputError: In place of any ``TypeError`` or ``ValueError`` of the block.
    """
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error
