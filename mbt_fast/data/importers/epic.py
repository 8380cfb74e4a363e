"""The CSV files of Epic-Kitchens-100."""

from collections.abc import Sequence
from pathlib import Path

from mbt_fast.data.importers.segment import LabelledSegment, read_table, seconds
from mbt_fast.data.labels import read_labels
from mbt_fast.errors import InputError

_CLASSES = {"verb": ("EPIC_100_verb_classes.csv", 97), "noun": ("EPIC_100_noun_classes.csv", 300)}


def read(
    annotations: Sequence[Path], labels: Path | None
) -> tuple[list[LabelledSegment], list[str]]:
    """Read segments of untrimmed videos, with a verb and the main noun each.

    Times are ``h:m:s.f``. The classes are the columns ``verb_class`` and ``noun_class``, not the
    narrator's words in ``verb`` and ``noun``. Files of the test set have neither.

    Args:
        annotations: The files.
        labels: Names of all classes, verbs first. ``None`` takes ``EPIC_100_verb_classes.csv`` and
            ``EPIC_100_noun_classes.csv`` beside the first file.

    Raises:
        InputError: A file cannot be read or is not of this kind, or a class has no name.
    """
    if labels is None:
        names = [name for kind in _CLASSES for name in _read_classes(annotations[0].parent, kind)]
    else:
        names = read_labels(labels)
    known = {
        kind: [n.removeprefix(f"{kind}:") for n in names if n.startswith(f"{kind}:")]
        for kind in _CLASSES
    }
    segments = []
    for path in annotations:
        columns = ("narration_id", "video_id", "start_timestamp", "stop_timestamp")
        for line, row in read_table(path, columns):
            start, end = (seconds(row[name], path, line) for name in columns[2:])
            verb, noun = (
                _name(row.get(f"{kind}_class"), known[kind], kind, f"{path}: line {line}")
                for kind in _CLASSES
            )
            clip = LabelledSegment(
                row["narration_id"], row["video_id"], start, end, verb=verb, noun=noun
            )
            segments.append(clip)
    return segments, names


def _read_classes(folder: Path, kind: str) -> list[str]:
    """The names of the verbs or nouns, ``"verb:take"`` for class 0."""
    name, count = _CLASSES[kind]
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path}: the classes of Epic-Kitchens must be given, got no such file")
    keys = {row["id"]: row["key"] for _, row in read_table(path, ("id", "key"))}
    if set(keys) != {str(index) for index in range(count)}:
        raise InputError(f"{path}: id must count from 0 to {count - 1}, got {len(keys)} classes")
    return [f"{kind}:{keys[str(index)]}" for index in range(count)]


def _name(index: str | None, names: Sequence[str], kind: str, where: str) -> str | None:
    if index is None:
        return None
    if not index.isdecimal() or int(index) >= len(names):
        raise InputError(f"{where}: {kind}_class must be below {len(names)}, got {index!r}")
    return names[int(index)]
