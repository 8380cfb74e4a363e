"""What ``profile`` and ``bench`` share: options of the model and of how it is run."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import ceil, inf
from pathlib import Path
from typing import Any

from mbt_fast.checkpoint.pretrained import read_config
from mbt_fast.errors import InputError
from mbt_fast.models import MBTConfig, list_models
from mbt_fast.models.registry import config_for
from mbt_fast.profiling import machine
from mbt_fast.profiling.runs import MODES

POSITIVE = ("clip_seconds", "frames", "tubelet", "batch_size")


def add_model(group: argparse._ArgumentGroup) -> None:
    """Declare the options of the model and its input."""
    group.add_argument("--model", default="mbt_base", choices=list_models())
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="instead: the config.json of a saved model"
    )
    group.add_argument(
        "--clip-seconds", type=float, help="seconds of sound, 100 spectrogram frames each"
    )
    group.add_argument("--frames", type=int, help="video frames")
    group.add_argument("--tubelet", type=int, help="frames per RGB patch")


def add_measurement(group: argparse._ArgumentGroup, seconds: float) -> None:
    """Declare the options of how it is run, with the default of ``--seconds``."""
    group.add_argument("--mode", choices=MODES, default="forward")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda[:index]")
    group.add_argument("--dtype", choices=["auto", *machine.DTYPES], default="auto")
    group.add_argument(
        "--seconds", type=float, default=seconds, help=f"for all, about (default: {seconds:g})"
    )


def base_config(args: argparse.Namespace) -> MBTConfig:
    """The model at its own fusion layer, with the input that was asked for.

    Raises:
        InputError: The file is not a config, or the model has no such modality.
        ValueError: Sizes contradict one another.
    """
    config = config_for(args.model) if args.config is None else read_config(args.config)
    size, patch = dict(config.input_size), dict(config.patch_size)
    for option, modality in (
        ("clip_seconds", "spectrogram"),
        ("frames", "rgb"),
        ("tubelet", "rgb"),
    ):
        if getattr(args, option) is not None and modality not in size:
            raise InputError(
                f"--{option.replace('_', '-')} must go with a model of {modality}, got "
                f"{', '.join(config.modalities)}"
            )
    if args.clip_seconds is not None:
        size["spectrogram"] = (ceil(100 * args.clip_seconds), size["spectrogram"][1])
    if args.frames is not None:
        size["rgb"] = (args.frames, *size["rgb"][1:])
    if args.tubelet is not None:
        patch["rgb"] = (args.tubelet, *patch["rgb"][1:])
    return replace(config, input_size=size, patch_size=patch)


def check_numbers(args: argparse.Namespace, *more: str) -> None:
    """Refuse numbers that are not finite, or below zero, or zero where they must be positive.

    Raises:
        InputError: One is.
    """
    positive = (*POSITIVE, *more)
    for name in (*positive, "seconds"):
        value, option = getattr(args, name), f"--{name.replace('_', '-')}"
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not 0 <= number < inf:
                raise InputError(f"{option} must be a finite number, not below zero, got {number}")
            if number == 0 and name in positive:
                raise InputError(f"{option} must be positive, got {number}")


class Clock:
    """A progress bar of a run that ends by the clock: percent of its time, and what is left."""

    def __init__(self, command: str) -> None:
        """Show nothing yet but the command."""
        from tqdm import tqdm

        self._command, self._start = command, time.monotonic()
        self._bar = tqdm(
            desc=command, bar_format="{desc}", file=sys.stderr, leave=False, miniters=0
        )

    def expect(self, seconds: float, what: str = "") -> None:
        """Say how long all of it takes, from its start, and what that is."""
        said = f"mbt-fast {self._command}: {what}about {seconds:.0f} s"
        self._bar.write(said, file=sys.stderr)
        self._bar.total = seconds
        self._bar.bar_format = "{desc} {percentage:3.0f}%|{bar}|"
        self.tick()

    def tick(self) -> None:
        """Show the time that has passed."""
        total = self._bar.total or 0.0
        passed = min(total, time.monotonic() - self._start)
        left = f"{self._command}, {total - passed:.0f} s left:"
        self._bar.set_description_str(left, refresh=False)
        self._bar.update(passed - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


@contextmanager
def measuring(command: str, batch_size: int, device: Any) -> Iterator[Clock]:
    """A clock, while whose block lasts models are run.

    Raises:
        InputError: They do not fit into memory; anything else that fails is a bug, and stays one.
    """
    # The profiler that counts memory would announce itself on stderr for every model.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    clock = Clock(command)
    try:
        yield clock
    except (RuntimeError, MemoryError) as error:
        if machine.is_out_of_memory(error):
            raise InputError(
                f"--batch-size must fit into memory: {batch_size} clips do not fit on {device}"
            ) from error
        raise
    finally:
        clock.close()
