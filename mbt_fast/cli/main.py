"""Entry point of ``mbt-fast``: choose the subcommand, and turn errors into one line."""

import argparse
import os
import sys
from collections.abc import Sequence

import mbt_fast
from mbt_fast.cli import bench, convert, data, evaluate, info, predict, profile, train
from mbt_fast.dispatch import BackendError
from mbt_fast.errors import InputError

COMMANDS = {
    "train": train,
    "eval": evaluate,
    "profile": profile,
    "bench": bench,
    "predict": predict,
    "convert": convert,
    "data": data,
    "info": info,
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="mbt-fast", description="Multimodal Bottleneck Transformers: exact, fast, measured."
    )
    parser.add_argument("--version", action="version", version=mbt_fast.__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    Returns:
        0 well, 2 bad input, 75 a run that a signal ended early, 130 interrupted, 141 where nobody
        reads the output any more, as in ``mbt-fast info | head -1``; the last two are
        what a shell reports of the signals.
    """
    try:
        try:
            return _run(_parsed(argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 141


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; a command may take more of a kind after its options too.

    argparse gives a list of positional arguments only what stands before the first option.
    """
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and ("more_of" not in args or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        getattr(args, args.more_of).extend(rest)
    return args


def _run(args: argparse.Namespace) -> int:
    """Run a command, and turn what the user has to mend into one line."""
    try:
        return args.run(args)
    except BrokenPipeError:
        raise
    except (InputError, BackendError, OSError) as error:
        print(f"mbt-fast: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = _extra_of(error.name)
        if extra is None:
            raise
        print(
            f"mbt-fast: error: {args.command} needs the package {error.name!r}; "
            f"pip install 'mbt-fast[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("mbt-fast: interrupted", file=sys.stderr)
        return 130


def _extra_of(module: str | None) -> str | None:
    """The optional dependency group that holds ``module``, or ``None`` if it is a bug of ours."""
    groups = {
        "bench": ("jinja2", "matplotlib"),
        "cli": ("tabulate", "tqdm"),
        "clips": ("av",),
        "train": ("tomli", "tomli_w"),
        "weights": ("msgpack", "numpy", "safetensors"),
    }
    return next((extra for extra, names in groups.items() if module in names), None)
