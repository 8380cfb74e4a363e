"""A training run as a checkpoint: which of its folders is meant, and what it says beside weights.

A run holds ``checkpoints/step-XXXXXXXX/`` and text files, ``latest`` and ``best``, with one line:
the path of one of these folders from the run.
"""

import json
from os import PathLike
from pathlib import Path
from typing import Any

from mbt_fast.errors import CheckpointError

POINTERS = ("latest", "best")
STATE_FILE = "state.json"


def resolve_run(path: "str | PathLike[str]") -> Path:
    """The folder with the weights.

    Args:
        path: A run, for its latest checkpoint; ``RUN/latest`` or ``RUN/best``; or any other folder,
            which is returned as it is.

    Raises:
        CheckpointError: The run has no checkpoint yet, or names one that is not there.
        OSError: The file that names it cannot be read.
    """
    path = Path(path)
    if path.name in POINTERS and path.is_file():
        return _target(path)
    pointer = path / POINTERS[0]
    if pointer.is_file():
        return _target(pointer)
    if (path / "config.toml").is_file() and not (path / "config.json").exists():
        raise CheckpointError(f"{path}: the run has no checkpoint yet")
    return path


def read_state(path: "str | PathLike[str]") -> dict[str, Any]:
    """What a run knows beside the weights: its ``labels``, its ``front_end`` and more.

    Args:
        path: As in ``resolve_run``.

    Returns:
        What the checkpoint's ``state.json`` holds; nothing for weights that no run wrote.

    Raises:
        CheckpointError: As in ``resolve_run``, or the file is malformed.
        OSError: A file cannot be read.
    """
    file = resolve_run(path) / STATE_FILE
    if not file.is_file():
        return {}
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file}: not a whole JSON file: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: must hold a JSON object, got {type(state).__name__}")
    return state


def _target(pointer: Path) -> Path:
    folder = pointer.parent / pointer.read_text(encoding="utf-8").strip()
    if not folder.is_dir():
        raise CheckpointError(
            f"{pointer}: must name a checkpoint, got {folder}, which is not there"
        )
    return folder
