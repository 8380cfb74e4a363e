"""A trained model, and what its scores depend on beside the weights."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from mbt_fast.checkpoint.runs import read_state, resolve_run
from mbt_fast.data import ClipTransform, read_labels
from mbt_fast.data.classes import head_sizes
from mbt_fast.errors import CheckpointError, InputError
from mbt_fast.models.saved import Model, load_model


@dataclass(frozen=True)
class Trained:
    """A model as its run left it.

    Args:
        folder: Of the checkpoint.
        model: With its weights, on the CPU.
        transform: How it takes clips.
        names: The classes, in the order of the outputs.
        task: See ``mbt_fast.data.classes.TASKS``.
        settings: The run's configuration by dotted keys; empty for weights that no run wrote.
        step: Of the run, or ``None``.
    """

    folder: Path
    model: Model
    transform: ClipTransform
    names: tuple[str, ...]
    task: str
    settings: Mapping[str, Any]
    step: int | None = None

    def record(self) -> dict[str, Any]:
        """What a result says of the model, as JSON knows it."""
        return {
            "checkpoint": str(self.folder),
            "step": self.step,
            "task": self.task,
            "classes": len(self.names),
            "label_hash": label_hash(self.names),
            "front_end": asdict(self.transform),
        }


def load_trained(
    path: "str | PathLike[str]",
    *,
    labels: "str | PathLike[str] | None" = None,
    task: str | None = None,
    front_end: Mapping[str, Any] | None = None,
) -> Trained:
    """Load a run, or weights that no run wrote.

    Args:
        path: As in ``checkpoint.runs.resolve_run``.
        labels: File of the class names; a run has its own.
        task: What the model was trained for; a run says so itself.
        front_end: Fields of ``ClipTransform`` that differ from those of the run.

    Raises:
        InputError: Labels or task are missing, or do not fit.
        CheckpointError: The weights or the state of the run cannot be read.
        OSError: A file cannot be read.
    """
    folder, state = resolve_run(path), read_state(path)
    model = load_model(path)
    if not state:
        return _without_run(folder, model, labels, task, front_end or {})
    try:
        settings, names, step = state["config"], tuple(state["labels"]), state["step"]
        known = settings["train.task"]
        front_end = {**state["front_end"], **(front_end or {})}
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: state.json is not that of a run ({error})") from error
    if task not in (None, known):
        raise InputError(f"task must be that of the run, {known!r}, got {task!r}")
    if labels is not None:
        names = _renamed(names, read_labels(labels, len(names)), known)
    return Trained(folder, model, _transform(model, front_end), names, known, settings, step)


def label_hash(names: Sequence[str]) -> str:
    """SHA-256 of a file with one name per line, in hexadecimal digits."""
    return hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()


def _renamed(names: Sequence[str], given: Sequence[str], task: str) -> tuple[str, ...]:
    """Other names for the classes of a run, whose heads stay as large as they were."""
    old, new = (list(head_sizes(some, task).values()) for some in (names, given))
    if old != new:
        raise InputError(f"labels must name heads of {old} classes as in the run, got {new}")
    return tuple(given)


def _without_run(
    folder: Path,
    model: Model,
    labels: "str | PathLike[str] | None",
    task: str | None,
    front_end: Mapping[str, Any],
) -> Trained:
    for name, given in (("labels", labels), ("task", task)):
        if given is None:
            raise InputError(f"{name} must be given, for {folder} is not a training run")
    names = tuple(read_labels(labels or "", model.config.num_classes))
    return Trained(folder, model, _transform(model, front_end), names, task or "", {})


def _transform(model: Model, front_end: Mapping[str, Any]) -> ClipTransform:
    try:
        return ClipTransform.from_run(model.config, front_end)
    except (TypeError, ValueError) as error:
        raise InputError(f"front end: {error}") from error
