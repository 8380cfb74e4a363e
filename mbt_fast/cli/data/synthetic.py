"""``mbt-fast data synthetic``: a small data set of colours and tones, made here."""

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from mbt_fast.data.synthetic import SyntheticSet, write_synthetic

HELP = "Make a small data set: clips of colours and tones in noise, with manifests."
_DEFAULT = SyntheticSet()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mbt-fast data synthetic``."""
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    for name, kind, what in (
        ("clips", int, "clips in all"),
        ("classes", int, "classes, equally frequent"),
        ("seconds", float, "length of a clip"),
        ("val", float, "share of the clips in val.csv"),
        ("broken", float, "share of the clips that cannot be read"),
        ("silent", float, "share of the clips without sound"),
        ("seed", int, "another seed gives other clips"),
    ):
        value = getattr(_DEFAULT, name)
        parser.add_argument(f"--{name}", type=kind, default=value, help=f"{what} ({value})")


def run(args: argparse.Namespace) -> int:
    """Make the clips and say what there is."""
    from tqdm import tqdm

    made = SyntheticSet(**{name: getattr(args, name) for name in asdict(_DEFAULT)})
    clips = write_synthetic(args.out, made)
    kinds = Counter(kind for _, kind in tqdm(clips, total=made.clips, unit="clip", disable=None))
    print(f"{args.out}: {made.clips} clips of {made.classes} classes, {made.seconds:g} s each")
    print(f"broken: {kinds['broken']}, without sound: {kinds['silent']}")
    print("train.csv, val.csv and labels.txt are beside clips/")
    return 0
