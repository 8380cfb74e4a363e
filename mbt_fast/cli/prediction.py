"""What ``mbt-fast predict`` runs and shows: the model, the classes of one clip, and their table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbt_fast.checkpoint.runs import POINTERS
from mbt_fast.data import Clip, ClipTransform
from mbt_fast.errors import InputError
from mbt_fast.models import MBT, create_model, list_models
from mbt_fast.models.saved import Model, load_model

_RANDOM_SEED = 0
_HEAD_STD = 0.02

_UNPUBLISHED = (
    "note: the official feature extraction was never published; weights from the official release "
    "may expect other log-mel statistics (--spec-mean, --spec-std)"
)
_ZERO_HEAD = (
    "note: the classifier's weights are all zero, so every class gets the same probability "
    "(but for its bias), whatever the clip"
)


def pretrained_model(directory: str) -> Model:
    """The model that ``--checkpoint`` names: a folder, a run, or the ``best`` of a run.

    Raises:
        InputError: It is a file, or its weights cannot be used.
    """
    if Path(directory).is_file() and Path(directory).name not in POINTERS:
        raise InputError(
            f"--checkpoint must be a directory, got the file {directory!r}; "
            "run mbt-fast convert first"
        )
    return load_model(directory)


def random_model(name: str) -> MBT:
    """The model that ``--model`` names, with the same random weights every time.

    The classifier, which a new model has zero, is random too, so that clips differ.

    Raises:
        InputError: There is no such model.
    """
    if name not in list_models():
        raise InputError(f"--model must be one of {', '.join(list_models())}, got {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)
        model = create_model(name)
        torch.nn.init.normal_(model.head.weight, std=_HEAD_STD)
    return model


def notes_on(model: Model, transform: ClipTransform, *, of_run: bool) -> list[str]:
    """What to know before believing the predictions of a pretrained model."""
    notes = []
    weights = [p for name, p in model.head.named_parameters() if name.endswith("weight")]
    if not any(weight.any() for weight in weights):
        notes.append(_ZERO_HEAD)
    if transform.spectrogram is not None and not of_run:
        notes.append(_UNPUBLISHED)
    return notes


def predict_clip(
    model: Model,
    clip: Clip,
    labels: Sequence[str],
    *,
    top: int,
    activation: str,
    heads: Sequence[int],
    mask_padding: bool = False,
) -> dict[str, Any]:
    """Facts about a clip, and the ``top`` most probable classes of each head, as plain data.

    A probability that is NaN is ``None``, for JSON knows no NaN, and ranks last.
    """
    logits = _logits(model, clip, mask_padding)
    probabilities = _probabilities(logits, activation, heads)
    undefined = probabilities.isnan()
    ranked = _best(probabilities.masked_fill(undefined, -1), heads or [len(labels)], top)
    return {
        "path": clip.path,
        "seconds": clip.duration,
        "streams": dict(clip.formats),
        "absent": [m for m in model.config.modalities if m not in clip.inputs],
        "views": clip.n_views,
        "skipped": clip.skipped,
        "faults": list(clip.faults),
        "undefined": int(undefined.sum()),
        "classes": [
            {
                "index": index,
                "label": labels[index],
                "probability": None if undefined[index] else probabilities[index].item(),
            }
            for index in ranked
        ],
    }


def _logits(model: Model, clip: Clip, mask_padding: bool) -> Tensor:
    """Logits ``[K]`` of a clip, averaged over its views, as in the paper."""
    weight = next(model.head.parameters())
    inputs = {m: view.to(weight.device, weight.dtype) for m, view in clip.inputs.items()}
    lengths = {m: length.to(weight.device) for m, length in clip.lengths.items()}
    with torch.inference_mode():
        return model(inputs, lengths if mask_padding else None).float().mean(0)


def _probabilities(logits: Tensor, activation: str, heads: Sequence[int]) -> Tensor:
    """Probability of each class. Each head, of so many classes, has a softmax of its own."""
    if activation == "sigmoid":
        return logits.sigmoid()
    return torch.cat([part.softmax(-1) for part in logits.split(list(heads))])


def _best(scores: Tensor, heads: Sequence[int], top: int) -> list[int]:
    """The best classes of each head, all together from the best on."""
    indices = torch.arange(len(scores), device=scores.device)
    parts = zip(scores.split(list(heads)), indices.split(list(heads)), strict=True)
    chosen = torch.cat([own[part.topk(min(top, len(part))).indices] for part, own in parts])
    return chosen[scores[chosen].argsort(descending=True, stable=True)].tolist()


def table(record: dict[str, Any]) -> str:
    """The result of ``predict_clip`` as text."""
    from tabulate import tabulate

    streams = [f"{modality} ({form})" for modality, form in record["streams"].items()]
    lines = [
        record["path"],
        f"  {record['seconds']:.2f} s, {record['views']} view{'s' * (record['views'] > 1)}",
        f"  uses {' and '.join(streams)}",
        *(f"  {modality} is absent" for modality in record["absent"]),
    ]
    if record["skipped"]:
        packets = f"packet{'s' * (record['skipped'] > 1)}"
        lines.append(f"  damaged: {record['skipped']} {packets} skipped")
    lines += [f"  damaged: {fault}" for fault in record["faults"]]
    if record["undefined"]:
        lines.append(f"  classes without a probability, for it is NaN: {record['undefined']}")
    rows = [
        (rank, entry["label"], entry["probability"])
        for rank, entry in enumerate(record["classes"], start=1)
    ]
    headers = ("rank", "class", "probability")
    classes = tabulate(rows, headers, floatfmt=".4f", missingval="nan", disable_numparse=[1])
    return "\n".join((*lines, classes, ""))
