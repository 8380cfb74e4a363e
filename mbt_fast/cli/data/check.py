"""``mbt-fast data check``: decode every clip of a manifest, and count what there is."""

import argparse
import json
from pathlib import Path
from typing import Any

from mbt_fast.cli.data.options import add_manifest, add_workers, progress
from mbt_fast.cli.outputs import check_writable
from mbt_fast.data.classes import TASKS
from mbt_fast.data.examine import examine
from mbt_fast.data.labels import read_labels
from mbt_fast.data.manifest import Manifest
from mbt_fast.data.survey import Survey

HELP = "Decode all clips of a manifest; list the broken ones and count the classes."
_SHOWN = 20  # lines of a list


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mbt-fast data check``."""
    add_manifest(parser)
    add_workers(parser)
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="the classes, to count those without a clip"
    )
    parser.add_argument(
        "--task", choices=TASKS, help="whose classes they are (default: any that has the labels)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")


def run(args: argparse.Namespace) -> int:
    """Print what was found; the exit code is 2 if a clip is broken."""
    if args.json:
        check_writable(args.json)
    manifest = Manifest.read(args.manifest)
    names = list(_names(manifest, args.labels, args.task))
    survey = Survey()
    try:
        for examined in progress(examine, manifest, args.workers):
            survey.add(examined)
    finally:  # after Ctrl-C too
        record = {
            "manifest": str(args.manifest),
            "rows": len(manifest),
            "hash": manifest.hash,
            **survey.as_record(),
            "without_clips": [name for name in names if not survey.found[name]],
        }
        if args.json:
            args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _print(record, survey)
    return 2 if survey.broken else 0


def _names(manifest: Manifest, labels: Path | None, task: str | None) -> tuple[str, ...]:
    """The classes, of a file or that occur; none if the manifest has no labels."""
    if labels is None:
        return manifest.label_names(task) if manifest.has_labels or task else ()
    names = read_labels(labels)
    manifest.class_counts(names, task)  # refuses labels that are no class
    return tuple(names)


def _print(record: dict[str, Any], survey: Survey) -> None:
    from tabulate import tabulate

    hours = record["seconds"] / 3600
    print(f"{record['manifest']}: {survey.clips:,} clips, {hours:,.2f} hours can be read")
    for kind, counts in survey.formats.items():
        print(f"with {kind}: {counts.total():,}, without: {len(survey.without[kind]):,}")
        for form, count in counts.most_common(3):
            print(f"  {count:,} x {form}")
    print(f"pictures all the same: {len(survey.still):,}, sound all silence: {len(survey.muted):,}")
    print(f"broken: {len(survey.broken):,}")
    for name, reason in list(survey.broken.items())[:_SHOWN]:
        print(f"  {name}: {reason}")
    if len(survey.broken) > _SHOWN:
        print(f"  and {len(survey.broken) - _SHOWN:,} more, see --json")
    rows = [(name, counts["clips"], counts["broken"]) for name, counts in record["classes"].items()]
    if rows:
        rows.sort(key=lambda row: row[1])
        print(f"classes: {len(rows):,}" + (", the rarest:" if len(rows) > _SHOWN else ""))
        print(tabulate(rows[:_SHOWN], ("class", "clips", "broken"), intfmt=","))
    if record["without_clips"]:
        print("classes without a clip: " + ", ".join(record["without_clips"]))
    print(f"hash of ids and labels: {record['hash']}")
