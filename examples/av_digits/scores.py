"""Accuracy of a finished run on the splits that nothing was trained on, from clips in memory."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mbt_fast import MBT
from mbt_fast.data import ClipTransform, Manifest, collate, read_labels, read_window
from mbt_fast.data.classes import head_sizes

SCORES = "scores.json"
SPLITS = ("val", "seen", "unseen")
LOSS = "loss"  # the cross-entropy of the mean of the logits
BOTH = "both"  # the mean of the logits, which is what the model predicts
_BATCH = 250
_OPTIONS = ("fps", "stride", "min_side", "mean", "std")  # of the front end


@dataclass(frozen=True)
class Split:
    """Clips with their labels.

    Args:
        inputs: ``[N, ...]`` per modality.
        targets: Classes, int64 ``[N]``, per kind of label, in the order of the outputs.
        sizes: How many outputs each has.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        """Number of clips."""
        return len(next(iter(self.inputs.values())))


class Scorer:
    """Scores runs on the clips of a folder; these are read once for each task.

    Args:
        clips: What ``data.py`` wrote.
    """

    def __init__(self, clips: Path) -> None:
        """Read nothing yet."""
        self._clips = clips
        self._lock = Lock()  # several runs may end at once
        self._splits: dict[tuple[str, str], Split] = {}

    @torch.inference_mode()
    def score(self, task: str, run: Path) -> str:
        """Write ``scores.json`` into the folder of a run.

        It holds, for each split and each head of the model, the accuracy of the logits of each
        modality and of their mean, and the cross-entropy of the latter.

        Args:
            task: Of ``plan.TASKS``.
            run: Its folder.

        Returns:
            The accuracies of the mean of the logits, in words.
        """
        model = MBT.from_pretrained(run).eval()
        front_end = state_of(run)["front_end"]
        transform = ClipTransform(
            (2, 24, 24),
            (64, 32) if task != "place" else None,  # its clips have no sound
            **{key: front_end[key] for key in _OPTIONS},
        )
        scores = {}
        with self._lock:
            for split in SPLITS:
                if (task, split) not in self._splits:
                    self._splits[task, split] = read_split(self._clips, task, split, transform)
                scores[split] = score(model, self._splits[task, split])
        (run / SCORES).write_text(json.dumps(scores, indent=1) + "\n")
        return "  ".join(
            f"{split} " + " ".join(f"{100 * value:.1f}" for value in scores[split][BOTH].values())
            for split in SPLITS
        )


def state_of(run: Path) -> dict[str, Any]:
    """What the last checkpoint of a run says of the run."""
    state: dict[str, Any] = json.loads(
        (run / (run / "latest").read_text().strip() / "state.json").read_text()
    )
    return state


def read_split(clips: Path, task: str, split: str, transform: ClipTransform) -> Split:
    """All clips of a split."""
    manifest = Manifest.read(clips / task / f"{split}.csv")
    inputs, _ = collate([read_window(entry.media, transform) for entry in manifest])
    names = read_labels(clips / task / "labels.txt")
    kind = "single" if task == "digit" else "multitask"
    sizes = head_sizes(names, kind)
    targets = manifest.targets(names, kind).view(len(manifest), -1).T
    heads = zip(sizes, targets, strict=True)
    return Split(inputs, {head or task: x for head, x in heads}, tuple(sizes.values()))


def score(model: MBT, split: Split) -> dict[str, dict[str, float]]:
    """By modality, and for the mean of the logits, what each head makes of the clips."""
    batches: dict[str, list[Tensor]] = {modality: [] for modality in model.config.modalities}
    for first in range(0, len(split), _BATCH):
        inputs = {m: split.inputs[m][first : first + _BATCH] for m in batches}
        for modality, logits in model.forward_modalities(inputs).items():
            batches[modality].append(logits)
    outputs = {modality: torch.cat(parts) for modality, parts in batches.items()}
    outputs[BOTH] = torch.stack(list(outputs.values())).mean(0)
    scores = {name: _of_heads(_accuracy, logits, split) for name, logits in outputs.items()}
    return scores | {LOSS: _of_heads(_cross_entropy, outputs[BOTH], split)}


def _of_heads(
    measure: Callable[[Tensor, Tensor], Tensor], logits: Tensor, split: Split
) -> dict[str, float]:
    """A number for each head that the model has; these come first."""
    found, first = {}, 0
    for (name, classes), size in zip(split.targets.items(), split.sizes, strict=True):
        if first < logits.shape[1]:
            found[name] = measure(logits[:, first : first + size], classes).item()
        first += size
    return found


def _accuracy(logits: Tensor, classes: Tensor) -> Tensor:
    return (logits.argmax(1) == classes).double().mean()


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return cross_entropy(logits.double(), classes)
