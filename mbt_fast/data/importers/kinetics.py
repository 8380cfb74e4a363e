"""The CSV files of Kinetics-400, -600 and -700, also for subsets such as Kinetics-Sounds."""

from collections.abc import Sequence
from pathlib import Path

from mbt_fast.data.importers.segment import LabelledSegment, names_of, read_table, seconds


def read(
    annotations: Sequence[Path], labels: Path | None
) -> tuple[list[LabelledSegment], list[str]]:
    """Read segments.

    The columns are ``label,youtube_id,time_start,time_end,split``; the test files have no label.

    Args:
        annotations: The files.
        labels: Names of the classes in order; ``None`` takes all that occur, sorted.

    Raises:
        InputError: A file cannot be read or is not of this kind.
    """
    segments = []
    for path in annotations:
        for line, row in read_table(path, ("youtube_id", "time_start", "time_end")):
            video = row["youtube_id"]
            start, end = (seconds(row[name], path, line) for name in ("time_start", "time_end"))
            label = (row["label"],) if row.get("label") else ()
            name = f"{video}_{round(start):06d}_{round(end):06d}"
            segments.append(
                LabelledSegment(name, video, start, end, label, split=row.get("split", ""))
            )
    return segments, names_of(segments, labels)
