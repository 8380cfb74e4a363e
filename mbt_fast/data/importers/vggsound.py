"""VGGSound's ``vggsound.csv``, and the two-column files of its repository."""

from collections.abc import Sequence
from pathlib import Path

from mbt_fast.data.importers.segment import LabelledSegment, names_of, read_csv, seconds
from mbt_fast.errors import InputError

SECONDS = 10  # of every clip


def read(
    annotations: Sequence[Path], labels: Path | None
) -> tuple[list[LabelledSegment], list[str]]:
    """Read segments.

    There is no header. A line is ``YTID,start,label,split``, or ``YTID_start.mp4,label``. A label
    may hold commas, in quotes.

    Args:
        annotations: The files.
        labels: Names of the classes in order; ``None`` takes all that occur, sorted.

    Raises:
        InputError: A file cannot be read or is not of this kind.
    """
    segments = []
    for path in annotations:
        for line, cells in read_csv(path):
            if len(cells) == 4:
                video, start_text, label, split = cells
            elif len(cells) == 2 and "_" in cells[0]:
                video, _, start_text = cells[0].rpartition(".")[0].rpartition("_")
                label, split = cells[1], ""
            else:
                raise InputError(
                    f"{path}: line {line} must be YTID,start,label,split or YTID_start.mp4,label"
                )
            start = seconds(start_text, path, line)
            name = f"{video}_{round(start):06d}"
            segments.append(
                LabelledSegment(name, video, start, start + SECONDS, (label,), split=split)
            )
    return segments, names_of(segments, labels)
