"""Read and write files so that a malformed one is named, and none is ever half written."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from mbt_fast.errors import CheckpointError

_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "_sharding", "manifest.ocdbt", "ocdbt.process_0")


@contextmanager
def replacing(path: "str | PathLike[str]") -> Iterator[Path]:
    """Give a temporary path beside ``path``, and rename it to ``path`` if the block succeeds.

    Yields:
        The temporary path; the block writes it. If the block raises, it is removed and ``path``
        stays as it was.

    Raises:
        OSError: The file cannot be renamed; or one of the block, which names a file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes a file of its own, closed to all other users
        temporary.replace(path)
    except OSError as error:  # that of a full disk names none
        if error.errno is None:  # its message is all that it has
            raise
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_not_orbax(path: Path) -> None:
    """Refuse a directory of orbax, in which flax saves today, by its name.

    Raises:
        CheckpointError: ``path`` is such a directory; says how to export it.
    """
    marks = (
        found for name in _ORBAX for place in (name, f"*/{name}") for found in path.glob(place)
    )
    if path.is_dir() and any(marks):
        raise CheckpointError(
            f"{path}: an orbax directory, which is not read; restore it with orbax, and write the "
            "parameters with flax.serialization.to_bytes({'params': params}) to a file"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        CheckpointError: It is no JSON, or holds something else than an object.
        OSError: The file cannot be read.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, got {type(values).__name__}")
    return values


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on CPU.

    Raises:
        CheckpointError: The file is truncated or malformed.
        OSError: The file cannot be read, or is a directory.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with path.open("rb"):  # the OSError of safetensors does not name the file
        pass
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error
    return tensors
