"""Write AV-Digits: clips that show one handwritten digit and say one.

``python -m examples.av_digits.data --fsdd FOLDER_OR_TAR --out clips``

Two tasks have clips of their own. In *digit* both digits are the same, which is the label. In
*sum* they are drawn independently, and the label is their sum modulo 10. Each task has four
manifests: ``train``, ``val``, and the tests ``seen`` and ``unseen``, whose speakers were trained on
with other recordings, or were not. The columns ``labels.sum``, ``labels.spoken`` and
``labels.shown`` are for a model with three heads. Further columns say where the digits are:
``quarter`` of the picture (0 to 3, row by row), ``spoken_from`` and ``spoken_to`` (seconds).
"""

import argparse
import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from examples.av_digits.digits import RATE, SPLITS, Digits, read_digits
from mbt_fast.data.encode import ClipWriter

TASKS = ("digit", "sum")
HEADS = ("sum", "spoken", "shown")
COLUMNS = (
    *("path", "id", "labels", *(f"labels.{head}" for head in HEADS)),
    *("quarter", "spoken_from", "spoken_to"),
)
SIZES = {"train": 16384, "val": 1000, "seen": 1000, "unseen": 1000}

FRAMES, SIDE, CELL = 2, 24, 12  # pixels of a frame and of its quarter
SECONDS = Fraction(64, 100)
DIGIT = 8  # pixels of an image's side
MOTION = 1.0  # pixels from frame to frame, at most, down and to the right each
GREY, CONTRAST, PIXEL_NOISE = 0.3, 0.5, 0.1  # of white
BRIGHTNESS = (0.8, 1.2)  # in training
TEMPO = 0.12  # in training a word is spoken this much faster or slower, at most
SNR = (0.0, 20.0)  # dB
TILT = 0.9  # noise falls with frequency, by a filter of this coefficient at most
LEVEL = 0.05  # of a word, full scale being 1


@dataclass(frozen=True)
class Example:
    """What a clip shows and says, and where.

    Args:
        pictures: uint8 ``[FRAMES, SIDE, SIDE]``.
        sound: float32 ``[samples]`` in [-1, 1].
        shown: The digit in the picture.
        spoken: The digit in the sound.
        quarter: Of the picture, row by row.
        interval: Seconds from which and to which the digit is spoken.
    """

    pictures: Tensor
    sound: Tensor
    shown: int
    spoken: int
    quarter: int
    interval: tuple[float, float]


def make_example(digits: Digits, task: str, training: bool, source: Generator) -> Example:
    """Draw an example.

    Args:
        digits: Of its split.
        task: ``"digit"`` or ``"sum"``.
        training: Whether brightness and tempo differ from example to example.
        source: Of all that is random.
    """
    spoken, other, quarter = (int(_below(n, source)) for n in (10, 10, 4))
    shown = spoken if task == "digit" else other
    image = one_of(digits.images[shown], source)
    pictures = draw_pictures({quarter: image}, training, source)
    word = torch.from_numpy(one_of(digits.words[spoken], source))
    sound, interval = draw_sound(word, training, source)
    return Example(pictures, sound, shown, spoken, quarter, interval)


def label_names(task: str) -> list[str]:
    """The classes of a task, in the order of the outputs."""
    heads = ("",) if task == "digit" else tuple(f"{head}:" for head in HEADS)
    return [f"{head}{digit}" for head in heads for digit in range(10)]


def write_task(
    digits: dict[str, Digits],
    task: str,
    folder: Path,
    sizes: dict[str, int],
    *,
    seed: int = 0,
    jobs: int = 1,
) -> Iterator[Path]:
    """Write the clips of a task, ``TASK/labels.txt`` and the manifests ``TASK/SPLIT.csv``.

    Args:
        digits: Of each split.
        task: ``"digit"`` or ``"sum"``.
        folder: Where to.
        sizes: Number of clips of each split.
        seed: Another seed gives other clips; the same seed gives the same.
        jobs: Processes that write.

    Yields:
        Each manifest after it was written.
    """
    write_labels(folder / task, label_names(task))
    for split, size in sizes.items():
        write = partial(_write, digits[split], task, split, folder / task / split, seed)
        yield write_split(folder / task, split, COLUMNS, write, size, jobs=jobs)


def write_labels(folder: Path, names: Sequence[str]) -> None:
    """Write ``labels.txt`` into the folder of a task."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in names))


def write_split(
    folder: Path,
    split: str,
    columns: Sequence[str],
    write: Callable[[int], dict[str, Any]],
    size: int,
    *,
    jobs: int,
) -> Path:
    """Write the clips of a split, and its manifest.

    Args:
        folder: Of the task.
        split: Its name.
        columns: Of the manifest.
        write: Writes the clip of an index into the folder of the split, and returns its row.
        size: Number of clips.
        jobs: Processes that write.

    Returns:
        The manifest.
    """
    (folder / split).mkdir(exist_ok=True)
    if jobs == 1:
        rows = [write(index) for index in range(size)]
    else:
        with get_context("spawn").Pool(jobs, torch.set_num_threads, (1,)) as pool:
            rows = pool.map(write, range(size), chunksize=-(-size // jobs))
    manifest = folder / f"{split}.csv"
    with manifest.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return manifest


def write_clip(path: Path, pictures: Tensor, sound: Tensor | None = None) -> None:
    """Write an mp4 file; its pictures are lossless but for the step from 256 to 220 greys."""
    from av import VideoFrame

    with ClipWriter(str(path), quality=0, preset="ultrafast") as writer:
        writer.begin((SIDE, SIDE), sound=sound is not None)
        for number, picture in enumerate(pictures):
            frame = VideoFrame.from_ndarray(picture.numpy(), format="gray")
            writer.add_picture(frame, number * SECONDS / FRAMES, SECONDS / FRAMES)
        if sound is not None:
            writer.add_sound(sound)


def _write(
    digits: Digits, task: str, split: str, folder: Path, seed: int, index: int
) -> dict[str, Any]:
    """Write a clip; its row of the manifest."""
    place = (seed * len(TASKS) + TASKS.index(task)) * len(SPLITS) + SPLITS.index(split)
    source = Generator().manual_seed(place * 10_000_000 + index)
    example = make_example(digits, task, split == "train", source)
    path = folder / f"{index:05d}.mp4"
    write_clip(path, example.pictures, example.sound)
    spoken, shown = example.spoken, example.shown
    labels = {"digit": spoken, "sum": (spoken + shown) % 10}
    times = (f"{time:.4f}" for time in example.interval)
    values = (
        *(f"{split}/{path.name}", f"{task}-{split}-{index:05d}"),
        *(labels[task], labels["sum"], spoken, shown, example.quarter, *times),
    )
    return dict(zip(COLUMNS, values, strict=True))


def draw_pictures(images: Mapping[int, Tensor], training: bool, source: Generator) -> Tensor:
    """Images in quarters of a grey frame, with noise: uint8 ``[FRAMES, SIDE, SIDE]``.

    Each moves in a straight line, and turns back where it meets the border of its quarter.

    Args:
        images: By quarter, ``[DIGIT, DIGIT]`` each.
        training: Whether the brightness differs from example to example.
        source: Of all that is random.
    """
    reach = CELL - DIGIT
    canvas = torch.zeros(FRAMES, SIDE, SIDE)
    for quarter, image in images.items():
        start = reach * torch.rand(2, generator=source)
        speed = MOTION * (2 * torch.rand(2, generator=source) - 1)
        places = start + speed * torch.arange(FRAMES)[:, None]
        places = (reach - (places % (2 * reach) - reach).abs()).round().long()
        places = places + CELL * torch.tensor(divmod(quarter, 2))
        for frame, (top, left) in zip(canvas, places.tolist(), strict=True):
            frame[top : top + DIGIT, left : left + DIGIT] = image
    brightness = _between(*BRIGHTNESS, source) if training else torch.ones(())
    noise = torch.randn(canvas.shape, generator=source)
    grey = GREY + CONTRAST * brightness * canvas + PIXEL_NOISE * noise
    return grey.clamp(0, 1).mul(255).round().byte()


def draw_sound(
    word: Tensor, training: bool, source: Generator
) -> tuple[Tensor, tuple[float, float]]:
    """The word at a random moment, or its middle if it is too long; and when it is heard."""
    tempo = 1 + TEMPO * (2 * torch.rand((), generator=source) - 1)
    if training:
        length = round(len(word) / float(tempo))
        word = interpolate(word[None, None], length, mode="linear", align_corners=False)[0, 0]
    samples = int(SECONDS * RATE)
    start = int(torch.rand((), generator=source) * (samples - len(word)))  # negative: it is cut
    begin, end = max(start, 0), min(start + len(word), samples)
    sound = _noise(samples, source)
    sound[begin:end] += word[begin - start : end - start]
    return (LEVEL * sound).clamp(-1, 1), (begin / RATE, end / RATE)


def _noise(samples: int, source: Generator) -> Tensor:
    """White to brownish noise, from as loud as a word to 20 dB below it."""
    white = torch.randn(samples + 1, generator=source)
    tilt = TILT * torch.rand((), generator=source)
    noise = (white[1:] + tilt * white[:-1]) / (1 + tilt**2).sqrt()
    return noise * 10 ** (-_between(*SNR, source) / 20)


def one_of(values: Any, source: Generator) -> Any:
    """One of some values."""
    return values[int(_below(len(values), source))]


def _below(n: int, source: Generator) -> Tensor:
    return torch.randint(n, (), generator=source)


def _between(low: float, high: float, source: Generator) -> Tensor:
    return low + (high - low) * torch.rand((), generator=source)


def write_all(speech: Path, folder: Path, sizes: dict[str, int], *, seed: int, jobs: int) -> None:
    """Write both tasks; arguments as for ``read_digits`` and ``write_task``."""
    torch.set_num_threads(1)
    digits = read_digits(speech)
    for task in TASKS:
        for manifest in write_task(digits, task, folder, sizes, seed=seed, jobs=jobs):
            print(manifest, flush=True)


def main() -> None:
    """Write the clips."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--fsdd", type=Path, required=True, help="the Free Spoken Digit Dataset, folder or tar")
    add("--out", type=Path, required=True, help="folder of the clips")
    add("--clips", type=int, default=SIZES["train"], help="for training, of each task")
    add("--seed", type=int, default=0)
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    args = parser.parse_args()
    sizes = SIZES | {"train": args.clips}
    write_all(args.fsdd, args.out, sizes, seed=args.seed, jobs=args.jobs)


if __name__ == "__main__":
    main()
