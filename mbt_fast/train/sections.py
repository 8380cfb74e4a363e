"""The sections of a training configuration, one class for each table of the TOML file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from mbt_fast.data import ClipTransform
from mbt_fast.dispatch import check_name
from mbt_fast.errors import InputError
from mbt_fast.train.fields import (
    Finite,
    Natural,
    NotNegative,
    Positive,
    PositiveNumber,
    PositiveShare,
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
class LoopConfig(Section):
    """The loss, the optimizer and how long they run.

    Args:
        task: ``"multilabel"``: binary cross-entropy, mAP. ``"single"``: cross-entropy, top-1 and
            top-5. ``"verb_noun"``: both of a verb and of a noun, and their pair, the action.
            ``"multitask"``: a head for each column ``labels.HEAD`` of the manifest; the mean of
            their cross-entropies, and top-1 of each.
        loss: ``"per_modality"``: the mean of the losses of the modalities' logits, as in the
            official code. ``"mean_logits"``: the loss of their mean.
        epochs: Passes over the training clips; or ``steps``.
        steps: Steps of the optimizer; or ``epochs``.
        batch_size: Clips of a step, over all devices.
        micro_batch: Clips that are computed at a time; none for all of a device's share.
        virtual_devices: Groups into which a batch is cut: each has its own mixing and its gradient
            is clipped by itself, as on so many devices of the official code. 0 for one group.
        optimizer: SGD with momentum, or AdamW.
        lr: Greatest learning rate.
        momentum: Of SGD.
        weight_decay: Of either.
        betas: Of AdamW.
        warmup_epochs: Epochs of linear warm-up; or ``warmup_steps``.
        warmup_steps: Steps of linear warm-up; or ``warmup_epochs``.
        schedule: After warm-up the learning rate falls as a cosine to 0, or stays.
        layer_decay: Factor of the learning rate from each layer to the one below.
        clip_norm: Greatest norm of a gradient; none for any.
        ema: Decay of the moving average of the weights, which is then what is scored; 0 for none.
        average_last: The weights after each of so many last epochs are averaged; 0 for none.
        seed: Of everything random.
        dtype: Of autocast; ``"auto"`` is the machine's best precision.
        backend: Of every op; see ``mbt-fast info``.
        recompute: Activations that are computed again instead of kept.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``; of several ranks each takes a GPU of its host.
        parallel: With several ranks each has the whole model, ``"ddp"``, or a share of its weights
            and of the optimizer's state, ``"fsdp"``.
        log_every: Steps from one line of the log to the next.
    """

    title: ClassVar[str] = "train"

    task: Literal["multilabel", "single", "verb_noun", "multitask"]
    loss: Literal["per_modality", "mean_logits"] = "per_modality"
    epochs: Positive | None = None
    steps: Positive | None = None
    batch_size: Positive
    micro_batch: Positive | None = None
    virtual_devices: Natural = 0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveNumber
    momentum: ShareBelowOne = 0.9
    weight_decay: NotNegative = 0.0
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)
    warmup_epochs: NotNegative = 0.0
    warmup_steps: Natural | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    layer_decay: PositiveShare = 1.0
    clip_norm: PositiveNumber | None = None
    ema: ShareBelowOne = 0.0
    average_last: Natural = 0
    seed: Natural = 0
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    backend: str = "auto"
    recompute: Literal["none", "norms", "mlp"] = "norms"
    device: str = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    log_every: Positive = 1

    def __post_init__(self) -> None:
        """Check every field, and what two of them must have in common."""
        super().__post_init__()
        if (self.epochs is None) == (self.steps is None):
            raise InputError("train.epochs or train.steps must be given, and not both")
        if self.warmup_epochs and self.warmup_steps is not None:
            raise InputError("train.warmup_epochs or train.warmup_steps must be given, not both")
        for name in ("micro_batch", "virtual_devices"):
            parts = getattr(self, name)
            if parts and self.batch_size % parts:
                raise InputError(
                    f"train.{name} must divide train.batch_size = {self.batch_size}, got {parts}"
                )
        if self.micro_batch and self.virtual_devices:
            raise InputError("train.micro_batch must be left out with train.virtual_devices")
        try:
            check_name(self.backend)
        except ValueError as error:
            raise InputError(f"train.{error}") from error

    def steps_per_epoch(self, n_clips: int) -> int:
        """Whole batches of an epoch; what is left over is dropped, as in the official code.

        Raises:
            InputError: There are fewer clips than a batch has.
        """
        if n_clips < self.batch_size:
            raise InputError(
                f"train.batch_size must be at most the number of training clips, {n_clips}, "
                f"got {self.batch_size}"
            )
        return n_clips // self.batch_size

    def total_steps(self, n_clips: int) -> int:
        """Steps of the whole run."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or 0) * self.steps_per_epoch(n_clips)

    def total_warmup_steps(self, n_clips: int) -> float:
        """Steps of linear warm-up; a fraction counts, as in the official code."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return self.warmup_epochs * self.steps_per_epoch(n_clips)


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
            Bottleneck tokens and classifier start anew.
    """

    title: ClassVar[str] = "init"

    vit: str = ""
    ast: str = ""
    checkpoint: str = ""
    towers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every field, and that they do not contradict one another."""
        super().__post_init__()
        if self.checkpoint and (self.vit or self.ast):
            raise InputError("init.checkpoint must be given alone, got init.vit or init.ast too")
        if self.towers and (self.checkpoint or self.vit or self.ast):
            raise InputError("init.towers must be given alone, got another key of [init] too")
