"""What a run is made of, read and built from its configuration."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbt_fast.data import ClipTransform, read_labels
from mbt_fast.data.classes import head_sizes
from mbt_fast.data.manifest import Manifest
from mbt_fast.errors import InputError
from mbt_fast.models import MBT
from mbt_fast.models.saved import Model
from mbt_fast.parallel.ranks import Ranks
from mbt_fast.profiling.machine import choose_device, choose_dtype
from mbt_fast.train import start
from mbt_fast.train.augment import Augment
from mbt_fast.train.clip_cache import ClipCache
from mbt_fast.train.config import TrainConfig
from mbt_fast.train.dataset import TrainingClips
from mbt_fast.train.decoded import CentreWindows, cached

_COMPARED = {
    "labels": "class names",
    "manifest": "training clips and labels",
    "val": "clips and labels of data.val",
    "test": "clips and labels of data.test",
}


@dataclass(frozen=True)
class Data:
    """The clips of a run and their classes.

    Args:
        train: What is trained on.
        val: What is scored during the run, or ``None``.
        test: What is scored at the end if it is another manifest than ``val``, or ``None``.
        names: The classes, in the order of the outputs.
        task: Which labels of the clips count.
    """

    train: Manifest
    val: Manifest | None
    test: Manifest | None
    names: tuple[str, ...]
    task: str

    @property
    def heads(self) -> tuple[int, ...]:
        """How many classes each head has."""
        return tuple(head_sizes(self.names, self.task).values())

    def weights(self, sampling: str) -> Tensor | None:
        """Weights of the training clips, for ``data.sampling``: none for ``"uniform"``."""
        if sampling != "balanced":
            return None
        return self.train.balanced_weights(self.names, self.task)


@dataclass(frozen=True)
class Parts:
    """A model, and what it is trained on.

    Args:
        config: Complete: ``model.num_classes`` is filled in.
        data: The clips.
        model: With its first weights, on its device.
        transform: What the model takes of a clip.
        device: Where the model is.
        dtype: Of autocast; float32 for none.
        ranks: This process among those of the run.
    """

    config: TrainConfig
    data: Data
    model: Model
    transform: ClipTransform
    device: torch.device
    dtype: torch.dtype
    ranks: Ranks

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return self.config.train.steps_per_epoch(len(self.data.train))

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.train.total_steps(len(self.data.train))

    def clips(self, cache: ClipCache | None = None) -> TrainingClips:
        """The training clips, as windows that are drawn or that a cache has."""
        config, data = self.config, self.data
        return TrainingClips(
            data.train,
            self.transform,
            data.names,
            config.train.task,
            config.augment,
            seed=config.train.seed,
            weights=data.weights(config.data.sampling),
            errors=config.data.errors,
            cache=cache,
        )

    def cache(
        self, manifest: Manifest, stop: Callable[[], bool], *, whole: bool = False
    ) -> ClipCache | None:
        """The decoded clips of a manifest, made if need be.

        Args:
            manifest: The clips.
            stop: Asked while it is made.
            whole: As in ``CentreWindows``.

        Returns:
            ``None`` without ``data.cache``, or if it was stopped.
        """
        data = self.config.data
        if not data.cache:
            return None
        self.ranks.at("data.cache")
        windows = CentreWindows(manifest, self.transform, data.errors, whole)
        return cached(windows, Path(data.cache), workers=data.workers, stop=stop)

    def augment(self) -> Augment:
        """What is done to a batch on the device."""
        return Augment(
            self.config.augment,
            self.config.train.task,
            len(self.data.names),
            heads=self.data.heads,
            n_tokens={m: self.transform.n_tokens(m) for m in self.transform.windows},
            joint=isinstance(self.model, MBT) and self.model.config.classifier == "gap",
        )

    def autocast(self) -> torch.autocast:
        """The precision of the forward."""
        enabled = self.dtype is not torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    def record(self) -> dict[str, Any]:
        """What a checkpoint says of the run, as JSON knows it."""
        return {
            "config": self.config.to_flat(),
            "front_end": asdict(self.transform),
            "labels": list(self.data.names),
            "manifest": self.data.train.hash,
            "val": self.data.val and self.data.val.hash,
            "test": self.data.test and self.data.test.hash,
        }

    def check_same_data(self, saved: Mapping[str, Any], folder: Path) -> None:
        """Refuse to go on with other clips or classes than those of a checkpoint.

        Raises:
            InputError: They differ.
        """
        now = self.record()
        for key, words in _COMPARED.items():
            if saved.get(key) != now[key]:
                raise InputError(
                    f"{words} must be those that {folder} was trained with, got others; "
                    "choose another folder"
                )


def read_data(config: TrainConfig) -> Data:
    """Read the manifests, and check that their labels are classes.

    Raises:
        InputError: A file cannot be read, a row is not valid for the task, or there are fewer clips
            than a batch has.
    """
    config.check_ready()
    task, files = config.train.task, config.data
    train = Manifest.read(files.train)
    config.train.steps_per_epoch(len(train))  # refuses a batch that is larger
    val = Manifest.read(files.val) if files.val else None
    test = Manifest.read(files.test) if files.test else None
    names = read_labels(files.labels) if files.labels else train.label_names(task)
    for manifest in filter(None, (train, val, test)):
        if task == "multilabel":  # the targets of two million rows would take a gigabyte
            manifest.class_counts(names, task)
        else:
            manifest.targets(names, task)
    return Data(train, val, test, tuple(names), task)


def build_parts(
    config: TrainConfig, data: Data, saved: Path | None = None, ranks: Ranks | None = None
) -> Parts:
    """Build the model and load its first weights.

    Args:
        config: With ``model.num_classes``.
        data: The clips.
        saved: The last checkpoint of the run, if there is one; see ``start.build``.
        ranks: This process among those of the run; alone if not given.

    Raises:
        InputError: Something does not fit the machine, the clips or the weights.
    """
    ranks = ranks or Ranks.alone(config.train.device)
    device = choose_device(ranks.device)
    dtype, _ = choose_dtype(config.train.dtype, device)
    model = start.build(config, len(data.names), saved).to(device)
    transform = start.clip_transform(config, model.config)
    return Parts(config, data, model, transform, device, dtype, ranks)
