"""Replace a file in one step, so that a reader never sees half of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path


@contextmanager
def replacing(path: "str | PathLike[str]") -> Iterator[Path]:
    """Give a temporary path beside ``path``, and rename it to ``path`` if the block succeeds.

    Yields:
        The temporary path; the block writes it. If the block raises, it is removed and ``path``
        stays as it was.

    Raises:
        OSError: The file cannot be renamed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes a file of its own, closed to all other users
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
