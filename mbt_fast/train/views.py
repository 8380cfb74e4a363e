"""The clips that are scored, each read whole: its evenly spaced windows, in any process."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mbt_fast.data import Clip, ClipTransform, collate, load_clip
from mbt_fast.data.manifest import Manifest
from mbt_fast.errors import ClipError
from mbt_fast.train.clip_cache import ClipCache

PADDING = -1  # the row of no clip


@dataclass(frozen=True)
class Views:
    """The windows of one clip.

    Args:
        row: Of the clip in its manifest.
        clip: ``None`` if it cannot be read.
        error: Why not.
    """

    row: int
    clip: Clip | None
    error: str = ""


@dataclass
class ViewBatch:
    """The windows of some clips, one after another.

    Args:
        inputs: Per modality ``[n, ...]``; frames are uint8.
        lengths: Valid own tokens per modality, int32 ``[n]``; ``None`` if all are.
        owners: The row of each window's clip, int64 ``[n]``.
        broken: Row and reason of clips that cannot be read.
        size: Number of clips, the broken ones too.
    """

    inputs: dict[str, Tensor]
    lengths: dict[str, Tensor] | None
    owners: Tensor
    broken: dict[int, str]
    size: int

    def pin_memory(self) -> "ViewBatch":
        """Copy to memory that a GPU reads by itself; the loader calls this."""
        return replace(self, inputs={m: x.pin_memory() for m, x in self.inputs.items()})


class ClipViews(Dataset[Views]):
    """The clips of a manifest with all their windows; row ``PADDING`` has none.

    Args:
        manifest: The clips.
        transform: What the model takes.
        n_views: Windows of a clip that is longer than one.
        errors: As for ``load_clip``.
        cache: The clips as one view each, decoded before.

    Raises:
        ValueError: There is a cache for several views.
    """

    def __init__(
        self,
        manifest: Manifest,
        transform: ClipTransform,
        n_views: int,
        errors: str = "strict",
        cache: ClipCache | None = None,
    ) -> None:
        """Hold what is needed; no file is opened."""
        if cache is not None and n_views != 1:
            raise ValueError(f"n_views must be 1 with a cache, got {n_views}")
        self.manifest, self.transform = manifest, transform
        self.n_views, self.errors, self.cache = n_views, errors, cache

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.manifest)

    def __getitem__(self, row: int) -> Views:
        """Read one clip."""
        if row == PADDING:
            return Views(row, None)
        try:
            return Views(row, self._read(row))
        except ClipError as error:
            return Views(row, None, str(error))

    def _read(self, row: int) -> Clip:
        if self.cache is not None:
            return self.cache[row]
        entry = self.manifest[row]
        return load_clip(
            entry.media,
            self.transform,
            self.n_views,
            start=entry.start,
            end=entry.end,
            pixels="uint8",
            errors=self.errors,
        )


def collate_views(items: Sequence[Views], *, mask_padding: bool) -> ViewBatch:
    """Stack the windows of all clips that could be read.

    Args:
        items: Of some clips.
        mask_padding: As for ``collate``.
    """
    windows = [(item.row, window) for item in items if item.clip for window in _windows(item.clip)]
    broken = {item.row: item.error for item in items if item.clip is None and item.row != PADDING}
    owners = torch.tensor([row for row, _ in windows], dtype=torch.int64)
    if not windows:
        return ViewBatch({}, None, owners, broken, len(items))
    inputs, lengths = collate([clip for _, clip in windows], mask_padding=mask_padding)
    return ViewBatch(inputs, lengths, owners, broken, len(items))


def _windows(clip: Clip) -> list[Clip]:
    """The windows of a clip as clips of their own."""
    return [
        replace(
            clip,
            inputs={m: x[view : view + 1] for m, x in clip.inputs.items()},
            lengths={m: length[view : view + 1] for m, length in clip.lengths.items()},
            starts={m: starts[view : view + 1] for m, starts in clip.starts.items()},
        )
        for view in range(clip.n_views)
    ]
