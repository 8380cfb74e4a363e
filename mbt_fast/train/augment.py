"""Augmentation of a batch, on its device.

Cropping and scaling belong to reading a clip (``data.read_window``). The rest is here, in the order
of the official code: mirror, to [-1, 1], colour, grey; SpecAugment; mixup. Modality dropout, which
the official code does not have, comes last.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from mbt_fast.layers.fusion_layer import SHARED
from mbt_fast.train import colour
from mbt_fast.train.losses import check_heads, soft_targets
from mbt_fast.train.mixup import Tensors, mixup
from mbt_fast.train.sections import AugmentConfig
from mbt_fast.train.spec_augment import spec_augment

_AT_ONCE = 8  # clips whose colours change together: the memory of a dozen copies


class Augmented(NamedTuple):
    """A batch as the model and the loss take it.

    ``inputs`` are float32; ``targets`` float32 ``[B, K]`` for each output of the model: for each
    modality, which modality mixup and absent modalities make differ, or ``"shared"`` alone;
    ``lengths`` int32 ``[B]`` for each modality, or ``None``.
    """

    inputs: Tensors
    targets: Tensors
    lengths: Tensors | None


class Augment:
    """What ``[augment]`` of a configuration does to a batch, all draws from one generator.

    Args:
        config: ``TrainConfig.augment``. ``label_smoothing`` is not read here: the loss smooths,
            after mixing.
        task: See ``mbt_fast.data.classes.TASKS``.
        n_classes: Outputs of the model.
        heads: As for ``losses.soft_targets``.
        n_tokens: Own tokens of each modality, CLS included: the length of a modality that is
            whole. Modality dropout needs it.
        joint: The model has one output for all modalities, as with ``classifier="gap"``.

    Raises:
        ValueError: The task is unknown, or ``heads`` or ``n_tokens`` do not fit.
    """

    def __init__(
        self,
        config: AugmentConfig,
        task: str,
        n_classes: int,
        *,
        heads: Sequence[int] | None = None,
        n_tokens: Mapping[str, int] | None = None,
        joint: bool = False,
    ) -> None:
        """Keep the configuration."""
        check_heads(task, n_classes, heads)
        if config.modality_dropout and n_tokens is None:
            raise ValueError("n_tokens must be given for modality dropout, got None")
        self.config = config
        self._target = (task, n_classes, heads)
        self._n_tokens = n_tokens or {}
        self._joint = joint

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        targets: Tensor,
        lengths: Mapping[str, Tensor] | None,
        generator: Generator,
    ) -> Augmented:
        """Augment a batch; what is given stays as it is.

        Args:
            inputs: ``rgb``: uint8, or float in [-1, 1], ``[B, 3, T, H, W]``. ``spectrogram``:
                normalised, ``[B, time, mel]``. Other modalities are mixed only.
            targets: As ``losses.soft_targets`` takes them.
            lengths: Valid own tokens of each modality, int32 ``[B]``; ``None`` where all are.
            generator: On the CPU, so that no draw waits for the device. The same state gives the
                same batch, on every device up to rounding.
        """
        batch = {m: self._one(m, x, generator) for m, x in inputs.items()}
        labels = dict.fromkeys(batch, soft_targets(targets, *self._target))
        valid = None if lengths is None else dict(lengths)
        if self.config.mixup:
            batch, labels, valid = mixup(
                batch,
                labels,
                valid,
                self.config.mixup,
                generator,
                modality_mixup=self.config.modality_mixup,
                joint=self._joint,
            )
        if self.config.modality_dropout:
            valid = self._drop_modalities(batch, valid, generator)
        if self._joint:
            labels = {SHARED: next(iter(labels.values()))}  # all are the same
        return Augmented(batch, labels, valid)

    def _one(self, modality: str, x: Tensor, generator: Generator) -> Tensor:
        if modality == "rgb":
            return self._picture(x, generator)
        if modality == "spectrogram":
            return spec_augment(
                x,
                generator,
                frequency_mask=self.config.frequency_mask,
                time_mask=self.config.time_mask,
                time_masks=self.config.time_masks,
                time_warp=self.config.time_warp,
            )
        return x

    def _picture(self, x: Tensor, generator: Generator) -> Tensor:
        mirrored, coloured, grey = torch.rand(3, len(x), generator=generator)
        strengths = torch.rand(len(x), 4, generator=generator)
        x = _change(x, mirrored < self.config.flip, lambda part, _: part.flip(-1))
        x = _change(to_float(x), coloured < self.config.colour, partial(_colour, strengths))
        return _change(x, grey < self.config.grey, lambda part, _: colour.grey(part))

    def _drop_modalities(
        self, inputs: Tensors, lengths: Tensors | None, generator: Generator
    ) -> Tensors:
        """Take one modality from some of the examples that have several."""
        if lengths is None:
            lengths = {m: _whole(x, self._n_tokens[m]) for m, x in inputs.items()}
        n_examples = len(next(iter(inputs.values())))
        chosen, which = torch.rand(2, n_examples, len(inputs), generator=generator)
        first = next(iter(lengths.values()))
        chosen, which = chosen[:, 0].to(first.device), which.to(first.device)
        present = torch.stack([lengths[m] > 0 for m in inputs], dim=1)
        drops = (chosen < self.config.modality_dropout) & (present.sum(1) > 1)
        victim = which.where(present, -1).argmax(1)
        return {
            modality: lengths[modality].masked_fill(drops & (victim == index), 0)
            for index, modality in enumerate(inputs)
        }


def to_float(x: Tensor) -> Tensor:
    """Pixels uint8 as float32 in [-1, 1]; whatever is float already stays as it is."""
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x


def _change(x: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Apply ``change``, which takes clips and their rows, to those chosen: bool ``[B]``, CPU."""
    if not chosen.any():
        return x
    x = x.clone()
    for rows in chosen.nonzero()[:, 0].split(_AT_ONCE):
        there = rows.to(x.device, non_blocking=True)
        x[there] = change(x[there], rows)
    return x


def _colour(strengths: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    return 2 * colour.jitter((x + 1) / 2, strengths[rows].to(x.device)) - 1


def _whole(x: Tensor, n_tokens: int) -> Tensor:
    return torch.full((len(x),), n_tokens, dtype=torch.int32, device=x.device)
