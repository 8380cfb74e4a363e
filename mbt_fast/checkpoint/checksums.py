"""SHA-256 of the files of a folder, in the form that ``sha256sum --check`` reads.

A safetensors file shows that it is truncated, but not that bits in it have changed.
"""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mbt_fast.errors import CheckpointError

SUMS_FILE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/]+)")
_CHUNK = 1 << 20  # bytes


def write_checksums(folder: Path) -> None:
    """List the files of a folder in ``SHA256SUMS``.

    Raises:
        OSError: A file cannot be read, or the list not be written.
    """
    files = sorted(folder.iterdir())
    with ThreadPoolExecutor() as pool:  # hashlib lets other threads run
        sums = pool.map(_sum, files)
        lines = [f"{digest}  {file.name}\n" for digest, file in zip(sums, files, strict=True)]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def check_checksums(folder: Path) -> None:
    """Compare the files of a folder with its list.

    A folder without a list, which an earlier version wrote, is taken as it is.

    Raises:
        CheckpointError: The folder is not there, or a file is missing, cannot be read or has
            changed; names it.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not there")
    if not (folder / SUMS_FILE).exists():
        return
    expected = _read(folder / SUMS_FILE)
    try:
        with ThreadPoolExecutor() as pool:
            sums = list(pool.map(_sum, expected))
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}") from error
    for (file, digest), actual in zip(expected.items(), sums, strict=True):
        if digest != actual:
            raise CheckpointError(f"{file}: has changed since it was written (SHA-256)")


def _read(path: Path) -> dict[Path, str]:
    """The files that a list names, with their sums."""
    text = path.read_bytes().decode("utf-8", "replace")
    matches = [_LINE.fullmatch(line) for line in text.splitlines()]
    if not text.endswith("\n") or None in matches:
        raise CheckpointError(f"{path}: must be a list of SHA-256 sums")
    return {path.parent / match[2]: match[1] for match in matches if match}


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
