"""Files that a command writes."""

import os
from pathlib import Path

from mbt_fast.errors import InputError


def check_writable(path: Path) -> None:
    """Refuse a file before anything is measured: that takes minutes, and is worth keeping.

    Raises:
        InputError: The file cannot be written.
    """
    if path.is_dir():
        raise InputError(f"output must be a file, got the folder {path}")
    if not path.parent.is_dir():
        raise InputError(f"output must be in a folder that exists, got {path}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"output must be writable, got {path}")
