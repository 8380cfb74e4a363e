"""Find the file of a segment among the names that downloaders give to clips."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mbt_fast.data.importers.segment import LabelledSegment
from mbt_fast.errors import InputError

# In order of preference, for a clip that is there twice.
SUFFIXES = (
    *(".mp4", ".mkv", ".webm", ".mov", ".avi", ".flv", ".m4v", ".mpg", ".ts"),
    *(".wav", ".flac", ".m4a", ".opus", ".ogg", ".mp3"),
)


def find_clips(
    segments: Sequence[LabelledSegment], folder: Path, whole_videos: bool
) -> tuple[list[tuple[LabelledSegment, Path]], list[LabelledSegment]]:
    """Find the file of each segment in a folder, however deep.

    Args:
        segments: The segments.
        folder: Where the clips are.
        whole_videos: Files are whole videos, called by the id of the video. Otherwise each is cut
            to its segment, and called by the id and possibly start and end, in any usual form.

    Returns:
        The segments with their files, and those without.

    Raises:
        InputError: The folder cannot be read, or holds no media file.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: must be the folder of the clips, got no folder")
    files = _by_stem(folder)
    if not files:
        raise InputError(f"{folder}: must hold media files, got none")
    found, missing = [], []
    for segment in segments:
        stems = (segment.video,) if whole_videos else _stems(segment)
        path = next((files[stem] for stem in stems if stem in files), None)
        if path is None:
            missing.append(segment)
        else:
            found.append((segment, path))
    return found, missing


def _by_stem(folder: Path) -> dict[str, Path]:
    """The media files of a folder by name without suffix."""
    files: dict[str, tuple[int, str]] = {}
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                rank = SUFFIXES.index(suffix.lower())
                if stem not in files or rank < files[stem][0]:
                    files[stem] = (rank, os.path.join(parent, name))
    return {stem: Path(path) for stem, (_, path) in files.items()}


def _stems(segment: LabelledSegment) -> Iterator[str]:
    """Names that the clip of a segment may have, the most exact first.

    Those are ``ID``, ``ID_start`` and ``ID_start_end`` in seconds with and without leading zeros
    or decimals, and in milliseconds; also with a ``Y`` in front, which keeps an id from beginning
    with a dash.
    """
    forms = ("{:06.0f}", "{:.0f}", "{:.3f}", "{:g}")
    starts = [form.format(segment.start) for form in forms]
    starts.append(f"{segment.start * 1000:.0f}")
    names = [segment.id]
    if segment.end is not None:
        ends = [form.format(segment.end) for form in forms] + [f"{segment.end * 1000:.0f}"]
        names += [f"{segment.video}_{s}_{e}" for s, e in zip(starts, ends, strict=True)]
    names += [f"{segment.video}_{start}" for start in starts]
    names.append(segment.video)
    yield from names
    yield from (f"Y{name}" for name in names)


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot read the folder ({error.strerror})") from error
