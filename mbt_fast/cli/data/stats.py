"""``mbt-fast data stats``: mean and deviation of the log-mel spectrograms of a manifest."""

import argparse
import json
from functools import partial
from pathlib import Path

from mbt_fast.cli.data.options import Rows, add_manifest, add_workers, progress
from mbt_fast.cli.outputs import check_writable
from mbt_fast.data.audio import WINDOWS
from mbt_fast.data.manifest import Manifest
from mbt_fast.data.statistics import Moments, log_mel_moments
from mbt_fast.errors import InputError

HELP = "Measure mean and deviation of the log-mel spectrogram, for data.mean and data.std."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mbt-fast data stats``."""
    add_manifest(parser)
    add_workers(parser)
    parser.add_argument("--window", choices=sorted(WINDOWS), default="hamming")
    parser.add_argument("--mel", type=int, default=128, help="bands (128)")
    parser.add_argument("--time", type=int, default=800, help="10 ms frames of a window (800)")
    parser.add_argument("--views", type=int, default=1, help="windows of a clip (1, the centre)")
    parser.add_argument("--limit", type=int, metavar="N", help="only N clips, evenly spread")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")


def run(args: argparse.Namespace) -> int:
    """Print the statistics as the lines of a recipe."""
    for name in ("mel", "time", "views", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    if args.json:
        check_writable(args.json)
    manifest = Manifest.read(args.manifest)
    measure = partial(
        log_mel_moments, time=args.time, mel=args.mel, window=args.window, views=args.views
    )
    moments, errors, silent = Moments(), [], 0
    rows = Rows(manifest, args.limit)
    for clip, error in progress(measure, rows, args.workers):
        moments += clip
        silent += error is None and not clip.count
        errors += [error] if error else []
    if not moments.count:
        raise InputError(f"{args.manifest}: must have a clip with sound that can be read, got none")
    record = {
        "manifest": str(args.manifest),
        "hash": manifest.hash,
        "clips": len(rows) - silent - len(errors),
        "without_sound": silent,
        "broken": errors,
        "values": moments.count,
        "window": args.window,
        "mel": args.mel,
        "mean": moments.mean,
        "std": moments.std,
    }
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"# {args.manifest}: {record['clips']:,} clips, {moments.count:,} values")
    print(f"# left out: {silent:,} without sound, {len(errors):,} broken")
    print(f'[data]\nwindow = "{args.window}"\nmean = {moments.mean:.4f}\nstd = {moments.std:.4f}')
    return 0
