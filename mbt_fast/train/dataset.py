"""The training clips, read from their files one window at a time, in any process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mbt_fast.data import Clip, ClipTransform, Crop, collate, read_window
from mbt_fast.data.classes import ClassIndex
from mbt_fast.data.manifest import Manifest
from mbt_fast.errors import ClipError
from mbt_fast.train.clip_cache import ClipCache
from mbt_fast.train.order import Key, draw, generator
from mbt_fast.train.sections import AugmentConfig

ATTEMPTS = 32  # a whole batch of unreadable clips then ends the run by its limit, and soon


@dataclass(frozen=True)
class Broken:
    """A clip that cannot be read.

    Args:
        index: Of its entry in the manifest.
        error: Why not.
    """

    index: int
    error: str


@dataclass(frozen=True)
class Item:
    """One clip of a batch.

    Args:
        index: Of its entry; -1 if none could be read.
        clip: ``None`` if none could be read.
        target: As ``Manifest.target`` gives it.
        broken: Clips that were to stand here before.
    """

    index: int
    clip: Clip | None
    target: Tensor
    broken: tuple[Broken, ...]


@dataclass
class Batch:
    """What a step takes; it can be pinned.

    Args:
        inputs: Per modality ``[B, ...]``; frames are uint8.
        lengths: Valid own tokens per modality, int32 ``[B]``; ``None`` if all clips are whole.
        targets: ``[B, ...]``.
        indices: Of the entries, in order.
        broken: Clips that were replaced.
    """

    inputs: dict[str, Tensor]
    lengths: dict[str, Tensor] | None
    targets: Tensor
    indices: list[int]
    broken: list[Broken]

    def pin_memory(self) -> "Batch":
        """Copy to memory that a GPU reads by itself; the loader calls this."""
        self.inputs = {m: tensor.pin_memory() for m, tensor in self.inputs.items()}
        return self

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.indices)

    def split(self, groups: int) -> "list[Batch]":
        """Equally many clips in each part, one after the other; what was broken stays behind."""
        size = len(self) // groups
        return [
            Batch(
                rows(self.inputs, first, size),
                None if self.lengths is None else rows(self.lengths, first, size),
                self.targets[first : first + size],
                self.indices[first : first + size],
                [],
            )
            for first in range(0, size * groups, size)
        ]

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device."""
        inputs = {m: tensor.to(device, non_blocking=True) for m, tensor in self.inputs.items()}
        lengths = self.lengths
        if lengths is not None:
            lengths = {m: length.to(device, non_blocking=True) for m, length in lengths.items()}
        targets = self.targets.to(device, non_blocking=True)
        return replace(self, inputs=inputs, lengths=lengths, targets=targets)


def rows(tensors: Mapping[str, Tensor], first: int, count: int) -> dict[str, Tensor]:
    """Some examples of a batch."""
    return {modality: tensor[first : first + count] for modality, tensor in tensors.items()}


class TrainingClips(Dataset[Item]):
    """Random windows of the clips of a manifest, as a function of seed, epoch and position.

    A clip that cannot be read is replaced by another, drawn like the order of the epoch.

    Args:
        manifest: The clips.
        transform: What the model takes.
        names: The classes, in the order of the outputs.
        task: As for ``Manifest.targets``.
        augment: How windows are drawn.
        seed: Of the run.
        weights: Those of the epoch's order.
        errors: As for ``read_window``.
        cache: What was decoded before, for windows that are not drawn.
    """

    def __init__(
        self,
        manifest: Manifest,
        transform: ClipTransform,
        names: Sequence[str],
        task: str,
        augment: AugmentConfig,
        *,
        seed: int,
        weights: Tensor | None = None,
        errors: str = "strict",
        cache: ClipCache | None = None,
    ) -> None:
        """Hold what is needed; no file is opened."""
        self.manifest = manifest
        self.transform = transform
        self.classes = ClassIndex(names, task)
        self.augment = augment
        self.seed = seed
        self.weights = weights
        self.errors = errors
        self.cache = cache

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.manifest)

    def __getitem__(self, key: Key) -> Item:
        """The clip at a position of an epoch."""
        broken: list[Broken] = []
        index = key.entry
        while len(broken) < ATTEMPTS:
            try:
                clip = self._read(index, key)
            except ClipError as error:
                broken.append(Broken(index, str(error)))
                index = self._substitute(key, len(broken))
            else:
                target = self.manifest.target(index, self.classes)
                return Item(index, clip, target, tuple(broken))
        return Item(-1, None, torch.zeros(()), tuple(broken))

    def _read(self, index: int, key: Key) -> Clip:
        if self.cache is not None:
            return self.cache[index]
        source = generator(self.seed, "window", key.epoch, key.position)
        position, crop = draw_window(self.augment, source)
        entry = self.manifest[index]
        return read_window(
            entry.media,
            self.transform,
            entry.start,
            entry.end,
            position=position,
            crop=crop,
            pixels="uint8",
            errors=self.errors,
        )

    def _substitute(self, key: Key, attempt: int) -> int:
        source = generator(self.seed, "substitute", key.epoch, key.position, attempt)
        return int(draw(len(self), 1, source, self.weights))


def draw_window(augment: AugmentConfig, source: torch.Generator) -> tuple[float, Crop]:
    """Where a window lies in its clip, and a crop in its frames.

    Args:
        augment: ``crop``, ``scale`` and ``window`` of it.
        source: Of random numbers. It gives equally many whatever is drawn from them.
    """
    position, height, width, top, left = torch.rand(5, generator=source).tolist()
    if augment.window == "centre":
        position = 0.5
    if augment.crop == "centre":
        top = left = 0.5
    least, most = augment.scale
    reach = most - least
    return position, Crop(least + reach * height, least + reach * width, top, left)


def collate_items(items: Sequence[Item], *, mask_padding: bool) -> Batch:
    """Stack items; a batch with an item that could not be read has no inputs.

    Args:
        items: At least one.
        mask_padding: As for ``collate``.
    """
    broken = [one for item in items for one in item.broken]
    clips = [item.clip for item in items if item.clip is not None]
    indices = [item.index for item in items]
    if len(clips) < len(items):
        return Batch({}, None, torch.zeros(0), indices, broken)
    inputs, lengths = collate(clips, mask_padding=mask_padding)
    targets = torch.stack([item.target for item in items])
    return Batch(dict(inputs), lengths, targets, indices, broken)
