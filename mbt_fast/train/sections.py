"""Sections of a training configuration: all tables of the TOML file but [model] and [train]."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from mbt_fast.data import ClipTransform
from mbt_fast.errors import InputError
from mbt_fast.train.fields import (
    Finite,
    Natural,
    NotNegative,
    Positive,
    PositiveNumber,
    Section,
    Share,
    ShareBelowOne,
)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Where the clips are, and how they are read.

    Args:
        train: Manifest of the training clips.
        val: Manifest that is scored during the run; empty for none.
        test: Manifest that is scored at the end; empty for ``val``.
        labels: File of the label names, in the order of the outputs; empty for the sorted names of
            the training manifest. See ``data.classes.head_sizes`` for tasks with several heads.
        workers: Processes that read clips; 0 reads in the process of the model.
        fps: As in ``ClipTransform``, and so the next fields up to ``circular_sound``.
        stride: Distance of frames; none makes the video last as long as the sound.
        min_side: Short side of a frame before the crop; none is 256/224 of the crop's.
        window: Analysis window of the spectrogram.
        mean: Subtracted from the log-mel spectrogram.
        std: Divides it.
        short: What fills a clip that is shorter than a window.
        circular_sound: The sound's window may wrap around to the clip's beginning, as in the
            official code.
        mask_padding: Tokens of padding are masked, instead of read as silence or a still.
        sampling: ``"balanced"`` draws with weights of one over the size of a clip's classes.
        broken_limit: Share of the clips; a run ends when more than this cannot be read.
        errors: ``"tolerate"`` skips damaged packets of a file, ``"strict"`` takes it as broken.
        cache: Folder in which decoded windows are kept for later epochs and runs; empty for none.
            The windows must be the centre ones. Scores of one view have a cache too.
    """

    title: ClassVar[str] = "data"

    train: str = ""
    val: str = ""
    test: str = ""
    labels: str = ""
    workers: Natural = 2
    fps: PositiveNumber = ClipTransform.fps
    stride: PositiveNumber | None = None
    min_side: Positive | None = None
    window: Literal["hamming", "hann"] = "hamming"
    mean: Finite = ClipTransform.mean
    std: PositiveNumber = ClipTransform.std
    short: Literal["repeat", "loop"] = "repeat"
    circular_sound: bool = False
    mask_padding: bool = False
    sampling: Literal["uniform", "balanced"] = "uniform"
    broken_limit: Share = 0.01
    errors: Literal["strict", "tolerate"] = "strict"
    cache: str = ""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Section):
    """What is done to a training clip beside reading it.

    Args:
        crop: Where in the frame.
        scale: Least and greatest factor of the frame's height and, independently, its width.
        window: Where in the clip or its segment.
        flip: Probability of a mirrored clip.
        colour: Probability of changed brightness, saturation, contrast and hue.
        grey: Probability of a grey clip.
        frequency_mask: One mask of fewer mel bins than this; 0 for none.
        time_mask: Masks of fewer spectrogram frames than this; the released code asks for them, and
            lingvo, with the options that it passes, makes none.
        time_masks: Masks of that kind.
        time_warp: Greatest shift of a spectrogram frame; 0 for none.
        mixup: Both parameters of the beta distribution of mixing; 0 for no mixing.
        modality_mixup: Each modality is mixed, labels too, with a share of its own.
        modality_dropout: Probability that one modality of a clip is taken away.
        label_smoothing: Share of the target that goes to all classes alike, after mixing.
    """

    title: ClassVar[str] = "augment"

    crop: Literal["random", "centre"] = "random"
    scale: tuple[PositiveNumber, PositiveNumber] = (1.0, 1.0)
    window: Literal["random", "centre"] = "random"
    flip: Share = 0.5
    colour: Share = 0.0
    grey: Share = 0.0
    frequency_mask: Natural = 0
    time_mask: Natural = 0
    time_masks: Natural = 0
    time_warp: Natural = 0
    mixup: NotNegative = 0.0
    modality_mixup: bool = False
    modality_dropout: ShareBelowOne = 0.0
    label_smoothing: ShareBelowOne = 0.0

    def __post_init__(self) -> None:
        """Check every field, and what two of them must have in common."""
        super().__post_init__()
        if self.scale[0] > self.scale[1]:
            raise InputError(f"augment.scale must be [least, greatest], got {list(self.scale)}")
        if self.modality_mixup and not self.mixup:
            raise InputError("augment.modality_mixup must go with augment.mixup above 0, got 0")
        if bool(self.time_mask) != bool(self.time_masks):
            raise InputError(
                "augment.time_mask and augment.time_masks must both be 0 or neither, got "
                f"{self.time_mask} and {self.time_masks}"
            )


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Section):
    """When and how the model is scored.

    Args:
        every_epochs: Epochs from one score to the next; 0 for the end alone.
        views: Windows of a clip in the score at the end, whose logits are averaged.
        epoch_views: The same during the run.
        batch_size: Windows at a time, about; none for as many as a batch of training has clips.
    """

    title: ClassVar[str] = "eval"

    every_epochs: Natural = 1
    views: Positive = 4
    epoch_views: Positive = 1
    batch_size: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """What is kept of a run.

    Args:
        every_steps: Steps from one checkpoint to the next.
        keep: Checkpoints that are kept, beside the best.
        best: Whether the one with the best score is kept.
    """

    title: ClassVar[str] = "checkpoint"

    every_steps: Positive = 500
    keep: Positive = 2
    best: bool = True


@dataclass(frozen=True, kw_only=True)
class InitConfig(Section):
    """Where the first weights come from; random without any.

    Args:
        vit: An image ViT, a file or a directory of Hugging Face; every modality gets it, as in the
            official code.
        ast: An Audio Spectrogram Transformer, for the modality ``spectrogram``.
        checkpoint: A run, a checkpoint of mbt_fast, or an official one; all weights but those of a
            classifier for other classes.
        towers: For each modality a run or checkpoint of an MBT with that modality, alone or among
            others: the modality's embedding and blocks are taken. The last norm, which modalities
            share, is that of the first one named, and so are the blocks of a shared encoder.
            Bottleneck tokens, classifier and modalities without a tower start anew.
    """

    title: ClassVar[str] = "init"

    vit: str = ""
    ast: str = ""
    checkpoint: str = ""
    towers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every field, and that they do not contradict one another."""
        super().__post_init__()
        towers = {modality: path for modality, path in self.towers.items() if path}
        object.__setattr__(self, "towers", towers)  # an empty path is none, as in the other keys
        if self.checkpoint and (self.vit or self.ast):
            raise InputError("init.checkpoint must be given alone, got init.vit or init.ast too")
        if self.towers and (self.checkpoint or self.vit or self.ast):
            raise InputError("init.towers must be given alone, got another key of [init] too")
