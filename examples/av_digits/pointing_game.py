"""The pointing game: how much of attention rollout falls where the digits are.

Of the mass that rollout gives to the picture, how much is in the quarter that holds the digit, and
of its mass in the sound, how much within the time in which the other digit is spoken? Beside each
share stand what an even map has there, and what the maps of the other clips have there: a map that
knows where digits usually are, but not where this one is, does no better than they.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbt_fast import MBT, rollout
from mbt_fast.data import ClipTransform, Manifest, collate, load_clip
from mbt_fast.data.rows import read_rows
from mbt_fast.errors import InputError

BATCH = 100  # clips at a time
MEAN = "mean"  # of the classifiers
Maps = dict[str, dict[str, Tensor]]  # from a classifier or their mean, to a modality: [n, ...]


@dataclass(frozen=True)
class Clips:
    """Clips, and where in them the digits are.

    Args:
        inputs: Per modality ``[n, ...]``.
        quarter: Of the picture that holds the digit, row by row: int64 ``[n]``.
        interval: Share of the window's length at which the word begins and ends: ``[n, 2]``.
        labels: Names of the classes of the first head.
    """

    inputs: dict[str, Tensor]
    quarter: Tensor
    interval: Tensor
    labels: list[str]

    def inside(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How much of each patch lies where the digit is, from 0 to 1, in the maps' shapes."""
        found = {}
        if "rgb" in maps:
            rows, columns = maps["rgb"].shape[-2:]
            down = _overlap(_halves(self.quarter // 2), rows)
            across = _overlap(_halves(self.quarter % 2), columns)
            area = down[:, None, :, None] * across[:, None, None, :]
            found["rgb"] = area.expand_as(maps["rgb"])
        if "spectrogram" in maps:
            time = _overlap(self.interval, maps["spectrogram"].shape[1])
            found["spectrogram"] = time[..., None].expand_as(maps["spectrogram"])
        return found


def read_clips(folder: Path, split: str, transform: ClipTransform, head: str) -> Clips:
    """Read the clips of a split that ``data.py`` or ``where.py`` wrote.

    Args:
        folder: Of the task.
        split: Its name.
        transform: What the models take of a clip.
        head: That of the labels.

    Raises:
        InputError: A column is missing.
    """
    path, column = folder / f"{split}.csv", f"labels.{head}"
    rows = [cells for _, cells in read_rows(path)]
    for needed in (column, "quarter", "spoken_from", "spoken_to"):
        if not all(needed in row for row in rows):
            raise InputError(f"{path} must have the column {needed!r}")
    clips = [load_clip(entry.media, transform, n_views=1) for entry in Manifest.read(path)]
    inputs, _ = collate(clips, mask_padding=False)
    seconds = {m: float(window.seconds) for m, window in transform.windows.items()}
    starts = [clip.starts.get("spectrogram", (0.0,))[0] for clip in clips]
    word = [[float(row["spoken_from"]), float(row["spoken_to"])] for row in rows]
    interval = (torch.tensor(word) - torch.tensor(starts)[:, None]) / seconds["spectrogram"]
    quarter = torch.tensor([int(row["quarter"]) for row in rows])
    return Clips(inputs, quarter, interval, [row[column] for row in rows])


def play(model: MBT, classes: Sequence[str], clips: Clips) -> dict[str, Any]:
    """Play the game with one model.

    Args:
        model: In eval mode.
        classes: Those of its first head.
        clips: What it is shown.

    Returns:
        ``accuracy``, and by method, source and modality what ``compare`` measures. Methods are
        ``rollout``; ``gradient``, the same for the class that the model predicts; and
        ``untrained``, the rollout of random weights. Sources are the classifiers and their mean.
    """
    with torch.no_grad():
        logits = torch.cat([model(batch) for batch, _ in _batches(clips.inputs)])
    said = logits[:, : len(classes)].argmax(dim=1)
    right = [classes[index] == label for index, label in zip(said, clips.labels, strict=True)]
    torch.manual_seed(0)
    methods = {
        "rollout": maps_of(model, clips.inputs),
        "gradient": maps_of(model, clips.inputs, said),
        "untrained": maps_of(MBT(model.config).eval(), clips.inputs),
    }
    measured = {
        method: {
            source: {
                m: compare(maps[m], inside) for m, inside in clips.inside(maps).items() if m in maps
            }
            for source, maps in by_source.items()
        }
        for method, by_source in methods.items()
    }
    return {"accuracy": sum(right) / len(right), **measured}


def maps_of(model: Any, inputs: Mapping[str, Tensor], target: Tensor | None = None) -> Maps:
    """Rollout of all clips, from each classifier and from their mean."""
    parts = []
    for batch, rows in _batches(inputs):
        result = rollout(model, batch, target=None if target is None else target[rows])
        parts.append({MEAN: dict(result), **result.by_source})
    return {
        source: {m: torch.cat([part[source][m] for part in parts]) for m in maps}
        for source, maps in parts[0].items()
    }


def compare(maps: Tensor, inside: Tensor) -> dict[str, Any]:
    """Measure maps against where the digit is.

    Args:
        maps: Mass of each patch, ``[n, ...]``.
        inside: How much of the patch lies where the digit is, likewise.

    Returns:
        ``mass``: of all rollout, what is in this modality. Of the ``n`` clips where it has any:
        ``share`` of it that is inside; that of the ``others``' maps, their mean; the ``gain``,
        share less others; and ``hits``, how often the strongest patch is inside by half or more;
        each with its standard error over the clips. ``uniform``: the share of an even map.
    """
    maps, inside = maps.flatten(1).double(), inside.flatten(1).double()
    total = maps.sum(dim=1)
    maps, inside = maps[total > 0], inside[total > 0]
    n = len(maps)
    if n < 2:
        return {"mass": total.mean().item(), "n": n}
    maps = maps / maps.sum(dim=1, keepdim=True)
    others = (maps.sum(dim=0) - maps) / (n - 1)
    share, without = (maps * inside).sum(dim=1), (others * inside).sum(dim=1)
    hits = inside.gather(1, maps.argmax(dim=1, keepdim=True))[:, 0] >= 0.5
    return {
        "mass": total.mean().item(),
        "n": n,
        "share": _mean(share),
        "others": _mean(without),
        "gain": _mean(share - without),
        "hits": _mean(hits.double()),
        "uniform": inside.mean().item(),
    }


def _halves(second: Tensor) -> Tensor:
    """The first or the second half of an axis, as begin and end: ``[n, 2]``."""
    return torch.stack([second, second + 1], dim=1) / 2


def _overlap(interval: Tensor, parts: int) -> Tensor:
    """How much of each of so many equal parts of an axis from 0 to 1 an interval covers."""
    low = torch.arange(parts) / parts
    begin, end = interval[:, :1], interval[:, 1:]
    covered = torch.minimum(end, low + 1 / parts) - torch.maximum(begin, low)
    return (covered * parts).clamp(0, 1)


def _mean(x: Tensor) -> list[float]:
    """Mean and its standard error."""
    return [x.mean().item(), (x.std() / len(x) ** 0.5).item()]


def _batches(inputs: Mapping[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], slice]]:
    n = len(next(iter(inputs.values())))
    for first in range(0, n, BATCH):
        rows = slice(first, first + BATCH)
        yield {m: x[rows] for m, x in inputs.items()}, rows
