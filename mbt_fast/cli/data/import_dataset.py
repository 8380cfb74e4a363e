"""``mbt-fast data audioset|vggsound|epic|kinetics``: a manifest from official annotations."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mbt_fast.cli.outputs import check_writable
from mbt_fast.data.importers import (
    READERS,
    Census,
    LabelledSegment,
    cap_classes,
    find_clips,
    write_labels,
    write_manifest,
)
from mbt_fast.data.manifest import Manifest
from mbt_fast.errors import InputError

DATASETS = {
    "audioset": "Manifest of AudioSet, from *_segments.csv and class_labels_indices.csv.",
    "vggsound": "Manifest of VGGSound, from vggsound.csv.",
    "epic": "Manifest of Epic-Kitchens-100, from EPIC_100_*.csv.",
    "kinetics": "Manifest of Kinetics, or of a subset such as Kinetics-Sounds, from its CSV files.",
}
_SHOWN = 10  # classes in a table


def add_arguments(parser: argparse.ArgumentParser, dataset: str) -> None:
    """Declare the arguments of one data set."""
    parser.add_argument(
        "annotations", nargs="+", type=Path, metavar="ANNOTATIONS", help="official files"
    )
    parser.add_argument(
        "--clips", type=Path, required=True, metavar="DIR", help="folder of media files, any depth"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="MANIFEST", help="the .csv or .jsonl to write"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="the classes in order; for audioset its class_labels_indices.csv. Clips of other "
        "classes are left out (default: found beside the annotations, or what occurs, sorted)",
    )
    parser.add_argument("--split", help="only rows of this split, where the file has a column")
    parser.add_argument(
        "--whole-videos",
        action=argparse.BooleanOptionalAction,
        default=dataset == "epic",
        help="files are whole videos called by their id, and rows get start and end "
        f"(default: {'yes' if dataset == 'epic' else 'no, they are cut clips'})",
    )
    parser.add_argument(
        "--cap", type=int, metavar="N", help="most clips of a class; 200000 for AudioSet-500K"
    )
    parser.add_argument("--seed", type=int, default=0, help="order in which --cap keeps clips")
    parser.add_argument(
        "--missing", type=Path, metavar="FILE", help="ids without a file (default: beside --out)"
    )
    parser.set_defaults(dataset=dataset)


def run(args: argparse.Namespace) -> int:
    """Write the manifest, the names of the classes and the missing ids, and say what they hold."""
    missing_path = args.missing or args.out.with_suffix(".missing.txt")
    for path in (args.out, missing_path):
        check_writable(path)
    if args.cap is not None and args.cap < 1:
        raise InputError(f"--cap must be at least 1, got {args.cap}")
    segments, names = READERS[args.dataset](args.annotations, args.labels)
    segments = _selected(_unique(segments), names, args.split)
    found, missing = find_clips(segments, args.clips, args.whole_videos)
    kept = found
    if args.cap is not None:
        ids = {s.id for s in cap_classes([segment for segment, _ in found], args.cap, args.seed)}
        kept = [(segment, path) for segment, path in found if segment.id in ids]
    if not kept:
        raise InputError(f"{args.clips}: must hold clips of {args.annotations[0]}, got none")

    columns = ("verb", "noun") if args.dataset == "epic" else ("labels",)
    write_labels(args.out.parent / "labels.txt", names)
    write_manifest(args.out, kept, args.whole_videos, columns)
    missing_path.write_text("".join(f"{segment.id}\n" for segment in missing), encoding="utf-8")

    share = len(found) / len(segments)
    print(f"{args.out}: {len(kept):,} rows")
    print(f"clips found: {len(found):,} of {len(segments):,} ({share:.1%})")
    if args.cap is not None:
        print(f"left out by --cap {args.cap}, seed {args.seed}: {len(found) - len(kept):,}")
    print(f"missing: {len(missing):,}, listed in {missing_path}")
    print(_describe(Census.of(names, [segment for segment, _ in kept], missing)))
    print(f"hash of ids and labels: {Manifest.read(args.out).hash}")
    return 0


def _unique(segments: list[LabelledSegment]) -> list[LabelledSegment]:
    """The segments without repetitions; says how many there are."""
    known: dict[str, LabelledSegment] = {}
    for segment in segments:
        first = known.setdefault(segment.id, segment)
        if first != segment:
            raise InputError(
                f"annotations must have each clip once, got {segment.id!r} with "
                f"{', '.join(first.classes)} and with {', '.join(segment.classes)}"
            )
    if len(known) < len(segments):
        print(f"left out, repeated: {len(segments) - len(known):,} clips")
    return list(known.values())


def _selected(
    segments: list[LabelledSegment], names: Sequence[str], split: str | None
) -> list[LabelledSegment]:
    """The segments of a split whose classes are all known; says how many are left out."""
    if split is not None:
        splits = sorted({segment.split for segment in segments})
        segments = [segment for segment in segments if segment.split == split]
        if not segments:
            raise InputError(f"--split must be one of {', '.join(splits) or 'none'}, got {split!r}")
    known = set(names)
    selected = [segment for segment in segments if known.issuperset(segment.classes)]
    if len(selected) < len(segments):
        print(f"left out, of other classes: {len(segments) - len(selected):,} clips")
    if not selected:
        raise InputError("annotations must have rows of the classes given, got none")
    return selected


def _describe(census: Census) -> str:
    """The classes that miss most, and those without any clip."""
    from tabulate import tabulate

    empty = [name for name, count in zip(census.names, census.found, strict=True) if not count]
    rows = sorted(
        zip(census.names, census.found, census.missing, strict=True), key=lambda row: -row[2]
    )
    lines = [f"classes: {len(census.names)}, {len(empty)} without a clip"]
    if empty:
        lines.append("  " + ", ".join(empty[:_SHOWN]) + (", ..." if len(empty) > _SHOWN else ""))
    if rows and rows[0][2]:
        table = [row for row in rows[:_SHOWN] if row[2]]
        lines.append(tabulate(table, ("most missing", "clips", "missing"), intfmt=","))
    return "\n".join(lines)
