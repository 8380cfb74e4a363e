"""Checkpoints of a run: whole or not there, whatever happens while they are written.

A checkpoint is a folder. It is written under a hidden name beside its place, synced to the disk
and renamed; then ``latest`` is changed to name it. How a run is read says ``checkpoint.runs``.
"""

import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from mbt_fast.checkpoint.checksums import write_checksums
from mbt_fast.checkpoint.files import replacing
from mbt_fast.checkpoint.runs import BEST, FOLDER, LATEST, find_checkpoint
from mbt_fast.errors import CheckpointError


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / FOLDER / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint, from its name."""
    return int(folder.name.removeprefix("step-"))


def point(run: Path, pointer: str, step: int) -> None:
    """Let ``latest`` or ``best`` name the checkpoint of a step.

    Raises:
        OSError: The pointer cannot be written; it stays as it was.
    """
    folder = folder_of(run, step)
    with replacing(run / pointer) as temporary:
        temporary.write_text(f"{folder.relative_to(run).as_posix()}\n", encoding="utf-8")
        _sync(temporary)
    _sync(run)


def save(run: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Write a checkpoint, and let ``latest`` name it.

    Args:
        run: Folder of the run.
        step: Number of steps made.
        write: Fills an empty folder.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: It cannot be written. What was written of it is removed; the checkpoints
            before it stay, and so does ``latest``.
    """
    from safetensors import SafetensorError

    folder = folder_of(run, step)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        write_checksums(temporary)
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        _remove(folder)  # of a run that was killed before ``latest`` named it
        temporary.rename(folder)
        _sync(folder.parent)
        point(run, LATEST, step)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        last = find_checkpoint(run)
        whole = f"the last whole one is {last}" if last else "there is none before it"
        raise CheckpointError(f"{folder} cannot be written: {reason}; {whole}") from error
    return folder


def prune(run: Path, keep: int, steps: Collection[int] = ()) -> None:
    """Remove old checkpoints, but neither the newest ``keep`` nor the best one.

    Args:
        run: Folder of the run.
        keep: How many of the newest stay.
        steps: Those of these steps stay too.

    Raises:
        OSError: A checkpoint cannot be removed.
    """
    latest, best = find_checkpoint(run), find_checkpoint(run, BEST)
    if latest is None:
        return
    whole = [folder for folder in sorted(run.glob(f"{FOLDER}/step-*")) if folder <= latest]
    for folder in whole[:-keep]:
        if folder != best and step_of(folder) not in steps:
            _remove(folder)


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process wrote, or removed, in part.

    A whole checkpoint that ``latest`` does not name yet stays until the run comes to its step.

    Raises:
        OSError: Something cannot be removed.
    """
    for folder in run.glob(f"{FOLDER}/.step-*"):
        shutil.rmtree(folder)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; one that is removed in part no longer has its name."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        folder.rename(hidden)
        shutil.rmtree(hidden)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
