"""``mbt-fast train``: train a model by a recipe, or say what that would take."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from mbt_fast.cli.outputs import check_writable
from mbt_fast.errors import InputError
from mbt_fast.layers.execution import RECOMPUTE
from mbt_fast.parallel.failure import ignore_launcher
from mbt_fast.parallel.ranks import is_main, world_size
from mbt_fast.profiling.plots import check_installed
from mbt_fast.train import TrainConfig, report, train
from mbt_fast.train.config import recipe_names
from mbt_fast.train.plan import parts_of

HELP = "Train a model; the same command goes on with a run that was stopped or killed."
STOPPED = 75  # "temporary failure" of sysexits.h: a scheduler is to start the run again
_SHORTHANDS = ("backend", "recompute")  # of the section [train]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mbt-fast train``."""
    parser.epilog = f"Recipes: {', '.join(recipe_names())}."
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a recipe")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="SECTION.KEY=VALUE",
        help="change a value, such as data.train=train.csv or train.lr=0.1",
    )
    parser.add_argument("--out", type=Path, metavar="RUN", help="the folder of the run")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing: show the configuration, the data, the cost and what will wait",
    )
    parser.add_argument(
        "--world",
        metavar="HOSTSxRANKS",
        help="with --dry-run: predict the run on so many hosts with so many GPUs each: 16x8",
    )
    parser.add_argument(
        "--machine",
        type=Path,
        metavar="FILE",
        help="with --world: what to assume of the hosts; H100 SXM with 400 Gb/s without it",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="with --world: draw how the run scales"
    )
    parser.add_argument("--backend", metavar="NAME", help="train.backend; see mbt-fast info")
    parser.add_argument("--recompute", choices=RECOMPUTE, help="train.recompute")
    parser.set_defaults(more_of="overrides")


def run(args: argparse.Namespace) -> int:
    """Train and print how the run ended, or print the plan; 75 if a signal ended it early."""
    shorthands = {name: getattr(args, name) for name in _SHORTHANDS}
    overrides = [f"train.{name}={value}" for name, value in shorthands.items() if value]
    _check_options(args)
    config = TrainConfig.from_toml(args.recipe, [*args.overrides, *overrides])
    if args.dry_run:
        for part in _plan(config, args):
            print(part, end="\n\n", flush=True)
        return 0
    if args.out is None:
        raise InputError("--out must name the folder of the run, or --dry-run be given")
    outcome = train(config, args.out)
    if world_size() > 1:
        ignore_launcher()
    if is_main():
        print(outcome)
        if report.missing():
            print(f"note: {report.missing()}")
    return STOPPED if outcome.stopped_by else 0


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that need another one, and a plot that cannot be written."""
    if args.world and not args.dry_run:
        raise InputError("--world must go with --dry-run; torchrun starts a run on several ranks")
    for name in ("machine", "plot"):
        if getattr(args, name) and not args.world:
            raise InputError(f"--{name} must go with --world")
    if args.plot:
        check_installed("matplotlib")
        check_writable(args.plot)


def _plan(config: TrainConfig, args: argparse.Namespace) -> Iterator[str]:
    """What ``--dry-run`` shows: of this machine, or of another world."""
    if not args.world:
        return parts_of(config)
    from mbt_fast.parallel.machine import Hosts  # takes long to import
    from mbt_fast.train import machines, world_text

    hosts, machine = Hosts.parse(args.world), args.machine or machines.DEFAULT
    return world_text.parts_of(config, hosts, machine, args.plot)
