"""The section ``[train]`` of a training configuration."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mbt_fast.dispatch import check_name
from mbt_fast.errors import InputError
from mbt_fast.train.fields import (
    Natural,
    NotNegative,
    Positive,
    PositiveNumber,
    PositiveShare,
    Section,
    ShareBelowOne,
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
