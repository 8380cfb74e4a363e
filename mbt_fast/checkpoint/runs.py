"""A training run as a checkpoint: which of its folders is meant, and what it says beside weights.

A run holds ``checkpoints/step-XXXXXXXX/`` and text files, ``latest`` and ``best``, with one line:
the path of one of these folders from the run.
"""

from os import PathLike
from pathlib import Path
from typing import Any

from mbt_fast.checkpoint.files import read_json
from mbt_fast.errors import CheckpointError

FOLDER = "checkpoints"
LATEST, BEST = POINTERS = ("latest", "best")
STATE_FILE = "state.json"


def find_checkpoint(run: Path, pointer: str = LATEST) -> Path | None:
    """The checkpoint that ``latest`` or ``best`` names, or ``None`` where there is none.

    Where ``latest`` is lost or empty, as a power cut may leave it, it is the newest checkpoint: one
    that has its name is whole.

    Raises:
        CheckpointError: It names a checkpoint that is not there.
        OSError: The pointer cannot be read.
    """
    folder = named(run, pointer)
    if folder is not None:
        if not folder.is_dir():
            raise CheckpointError(
                f"{run / pointer} must name a checkpoint, got {folder}, which is not there; "
                "remove the file to take the newest one"
            )
        return folder
    return max(run.glob(f"{FOLDER}/step-*"), default=None) if pointer == LATEST else None


def named(run: Path, pointer: str) -> Path | None:
    """What ``latest`` or ``best`` names, there or not; ``None`` where it is lost or empty.

    Raises:
        OSError: The pointer cannot be read.
    """
    file = run / pointer
    name = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return run / name if name else None


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
    points = path.name in POINTERS and path.is_file()
    folder = find_checkpoint(path.parent, path.name) if points else find_checkpoint(path)
    begun = (path / "config.toml").is_file() and not (path / "config.json").exists()
    if folder is None and (points or begun):
        raise CheckpointError(f"{path}: the run has no checkpoint yet")
    return folder or path


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
    folder = resolve_run(path)
    of_run = folder != Path(path) or (folder / STATE_FILE).is_file()
    return read_record(folder) if of_run else {}


def read_record(folder: Path) -> dict[str, Any]:
    """What ``state.json`` of a run's checkpoint holds.

    Raises:
        CheckpointError: It is malformed.
        OSError: It cannot be read.
    """
    return read_json(folder / STATE_FILE)
