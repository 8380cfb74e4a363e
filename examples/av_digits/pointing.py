"""Play the pointing game with the trained models, and write a record and the README's block of it.

``python -m examples.av_digits.pointing --clips clips --runs runs`` reads what ``data.py``,
``where.py`` and ``experiment.py`` wrote; without them the block is made anew from the record.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.report import replace_block
from examples.av_digits.pointing_game import MEAN, Clips, play, read_clips
from examples.av_digits.record import README, RESULTS
from examples.av_digits.scores import SCORES
from mbt_fast import MBT
from mbt_fast.data.classes import head_sizes
from mbt_fast.errors import InputError
from mbt_fast.train.trained import load_trained

RECORD = RESULTS / "pointing.json"
SPLITS = ("seen", "unseen")
MODELS = {  # that play, by task
    "sum": ("bottleneck-2", "vanilla-2", "late"),
    "where": ("where-bottleneck-1", "where-vanilla-1", "where-late"),
}
WORDS = {
    "bottleneck-2": "bottleneck, from layer 2",
    "vanilla-2": "vanilla, from layer 2",
    "where-bottleneck-1": "bottleneck, from layer 1",
    "where-vanilla-1": "vanilla, from layer 1",
    "late": "late",
    "where-late": "late",
}
METHODS = ("rollout", "gradient", "untrained")
KINDS = {  # method and measure of a column
    "rollout": ("rollout", "share"),
    "by gradient": ("gradient", "share"),
    "untrained": ("untrained", "share"),
    "others": ("rollout", "others"),
}
PLACES = {"rgb": "picture", "spectrogram": "sound"}

Row = dict[str, Any]


def play_all(clips: Path, runs: Path) -> Iterator[Row]:
    """The game of every finished run, a row for each split.

    Args:
        clips: What ``data.py`` and ``where.py`` wrote.
        runs: What ``experiment.py`` left.
    """
    for task, models in MODELS.items():
        read = cache(partial(read_clips, clips / task))
        for path in (path for name in models for path in sorted(runs.glob(f"seed-*/{name}"))):
            if (path / SCORES).exists():
                yield from _play_run(task, path, read)


def _play_run(task: str, folder: Path, read: Callable[..., Clips]) -> Iterator[Row]:
    trained = load_trained(folder)
    if not isinstance(trained.model, MBT):
        raise InputError(f"{folder} must be a run of experiment.py, got one of model.fuse")
    model = trained.model.eval()
    head, size = next(iter(head_sizes(trained.names, trained.task).items()))
    classes = [name.removeprefix(f"{head}:") for name in trained.names[:size]]
    seed = int(folder.parent.name.removeprefix("seed-"))
    for split in SPLITS:
        row: Row = {"task": task, "model": folder.name, "seed": seed, "split": split}
        row |= play(model, classes, read(split, trained.transform, head))
        print(f"{folder} {split}: accuracy {100 * row['accuracy']:.1f} %", flush=True)
        yield row


def block(rows: Sequence[Row]) -> str:
    """The README's block: where the mean of the classifiers looks, by each method."""
    head = [
        "task",
        "model",
        "accuracy",
        *(f"{p}, {kind}" for p in PLACES.values() for kind in KINDS),
    ]
    lines = [_line(head), "|---" * len(head) + "|"]
    for task, models in MODELS.items():
        for name in models:
            same = [row for row in rows if row["model"] == name]
            if same:
                cells = (_cell(same, m, *KINDS[kind]) for m in PLACES for kind in KINDS)
                lines.append(_line([task, WORDS[name], _accuracy(same), *cells]))
    return "\n".join(lines) + "\n\n" + _conditions(rows) + "\n"


def _conditions(rows: Sequence[Row]) -> str:
    tasks = [task for task in MODELS if any(row["task"] == task for row in rows)]
    even = ", ".join(
        f"{_cell([row for row in rows if row['task'] == task], m, 'rollout', 'uniform')} of the "
        f"{place} in *{task}*"
        for task in tasks
        for m, place in PLACES.items()
    )
    errors = [
        row[method][MEAN][m]["share"][1]
        for row in rows
        for method in METHODS
        for m in PLACES
        if "share" in row[method][MEAN][m]
    ]
    seeds = "; ".join(f"{_seeds(rows, task)} in *{task}*" for task in tasks)
    return (
        "Accuracy, and share of the map that is where the digit is, in %, for seen / unseen "
        f"speakers; mean over seeds: {seeds}. *Others* is the rollout of the other clips. An even "
        f"map has {even}. The standard error over the clips is at most {100 * max(errors):.1f} in "
        "each run. Record: "
        "[pointing.json](../../benchmarks/results/av_digits/pointing.json), which has it for each "
        "seed and each classifier, and how often the strongest patch is where the digit is."
    )


def _seeds(rows: Sequence[Row], task: str) -> str:
    return ", ".join(map(str, sorted({row["seed"] for row in rows if row["task"] == task})))


def _accuracy(rows: Sequence[Row]) -> str:
    """The mean over the seeds, for seen and unseen speakers."""
    return " / ".join(
        f"{100 * mean(row['accuracy'] for row in rows if row['split'] == split):.1f}"
        for split in SPLITS
    )


def _cell(rows: Sequence[Row], m: str, method: str, measure: str) -> str:
    """A measure, likewise."""
    shares = []
    for split in SPLITS:
        found = [row[method][MEAN][m] for row in rows if row["split"] == split]
        values = [_value(measured[measure]) for measured in found if measure in measured]
        shares.append(f"{100 * mean(values):.1f}" if values else "-")
    return " / ".join(shares)


def _value(measured: float | list[float]) -> float:
    return measured[0] if isinstance(measured, list) else measured


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the record, unless there are no runs; then the README's block."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clips", type=Path, help="what data.py and where.py wrote")
    parser.add_argument("--runs", type=Path, help="what experiment.py left")
    args = parser.parse_args(argv)
    if (args.clips is None) != (args.runs is None):
        parser.error("--clips and --runs must be given together")
    if args.runs:
        torch.set_num_threads(1)
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        RECORD.write_text(json.dumps(list(play_all(args.clips, args.runs)), indent=1) + "\n")
    rows = json.loads(RECORD.read_text())
    README.write_text(replace_block(README.read_text(), "pointing", block(rows)))


if __name__ == "__main__":
    main()
