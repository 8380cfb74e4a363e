"""Write clips with several digits, for the task *where* and what the picture's tower learns first.

``python -m examples.av_digits.where --fsdd FOLDER_OR_TAR --out clips``

In *where* each quarter of the picture shows another digit, and the voice names one of them: the
label is its quarter. Neither picture nor sound alone knows it. There are further heads, for the
spoken digit and for what each quarter shows. *place* has the latter four only, no sound, and often
fewer than four digits: without empty quarters a tower learns which digits there are, and not where.
Manifests are as those of ``data.py``; ``quarter`` is that of the digit which is named.
"""

import argparse
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from examples.av_digits.data import (
    SIZES,
    draw_pictures,
    draw_sound,
    one_of,
    write_clip,
    write_labels,
    write_split,
)
from examples.av_digits.digits import SPLITS, Digits, read_digits

TASKS = ("place", "where")
QUARTERS = ("top_left", "top_right", "bottom_left", "bottom_right")
NONE = "none"  # what an empty quarter shows
FEWER = 0.6  # of the clips of *place* have fewer than four digits
HEADS = {"place": QUARTERS, "where": ("where", "spoken", *QUARTERS)}
TRAINING = {"place": 16384, "where": 8192}  # clips
SEED = 1_000_000_000_000  # the clips of data.py have smaller ones


def label_names(task: str) -> list[str]:
    """The classes of a task, in the order of the outputs."""
    digits = [str(digit) for digit in range(10)]
    classes = dict.fromkeys(HEADS[task], digits)
    if task == "where":
        classes["where"] = list(QUARTERS)
    else:
        classes = {head: [*names, NONE] for head, names in classes.items()}
    return [f"{head}:{name}" for head, names in classes.items() for name in names]


def columns(task: str) -> list[str]:
    """Of the manifests of a task."""
    labels = [f"labels.{head}" for head in HEADS[task]]
    places = ["quarter", "spoken_from", "spoken_to"] if task == "where" else []
    return ["path", "id", *labels, *places]


def write_task(
    digits: dict[str, Digits],
    task: str,
    folder: Path,
    sizes: dict[str, int],
    *,
    seed: int = 0,
    jobs: int = 1,
) -> Iterator[Path]:
    """Write the clips of *place* or *where*; see ``data.write_task``."""
    write_labels(folder / task, label_names(task))
    for split, size in sizes.items():
        write = partial(_write, digits[split], task, split, folder / task / split, seed)
        yield write_split(folder / task, split, columns(task), write, size, jobs=jobs)


def _write(
    digits: Digits, task: str, split: str, folder: Path, seed: int, index: int
) -> dict[str, Any]:
    """Write a clip; its row of the manifest."""
    place = (seed * len(TASKS) + TASKS.index(task)) * len(SPLITS) + SPLITS.index(split)
    source = Generator().manual_seed(SEED + place * 10_000_000 + index)
    path, training = folder / f"{index:05d}.mp4", split == "train"
    shown, spoken = _draw(task, source)
    images = {q: one_of(digits.images[digit], source) for q, digit in shown.items()}
    pictures = draw_pictures(images, training, source)
    labels: dict[str, Any] = {name: shown.get(q, NONE) for q, name in enumerate(QUARTERS)}
    row: dict[str, Any] = {"path": f"{split}/{path.name}", "id": f"{task}-{split}-{index:05d}"}
    sound = None
    if task == "where":
        word = torch.from_numpy(one_of(digits.words[spoken], source))
        sound, interval = draw_sound(word, training, source)
        row["spoken_from"], row["spoken_to"] = (f"{time:.4f}" for time in interval)
        row["quarter"] = next(q for q, digit in shown.items() if digit == spoken)
        labels |= {"where": QUARTERS[row["quarter"]], "spoken": spoken}
    write_clip(path, pictures, sound)
    return row | {f"labels.{head}": label for head, label in labels.items()}


def _draw(task: str, source: Generator) -> tuple[dict[int, int], int]:
    """By quarter the digits that are shown, no two alike; and the one of them that is spoken."""
    digits = torch.randperm(10, generator=source)[:4].tolist()
    quarters = torch.randperm(4, generator=source).tolist()
    n = 4
    if task == "place" and torch.rand((), generator=source) < FEWER:
        n = int(torch.randint(1, 4, (), generator=source))
    return dict(zip(quarters[:n], digits[:n], strict=True)), digits[0]


def write_all(
    speech: Path, folder: Path, *, clips: int | None = None, seed: int, jobs: int
) -> None:
    """Write both tasks.

    Args:
        speech: See ``read_digits``.
        folder: Where to.
        clips: For training, of each task; by default ``TRAINING``.
        seed: See ``data.write_task``, and so for ``jobs``.
        jobs: Likewise.
    """
    torch.set_num_threads(1)
    digits = read_digits(speech)
    for task in TASKS:
        sizes = SIZES | {"train": clips or TRAINING[task]}
        for manifest in write_task(digits, task, folder, sizes, seed=seed, jobs=jobs):
            print(manifest, flush=True)


def main() -> None:
    """Write the clips."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--fsdd", type=Path, required=True, help="the Free Spoken Digit Dataset, folder or tar")
    add("--out", type=Path, required=True, help="folder of the clips")
    add("--clips", type=int, help=f"for training, of each task (default: {TRAINING})")
    add("--seed", type=int, default=0)
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    args = parser.parse_args()
    write_all(args.fsdd, args.out, clips=args.clips, seed=args.seed, jobs=args.jobs)


if __name__ == "__main__":
    main()
