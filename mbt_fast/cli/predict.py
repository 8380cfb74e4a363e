"""``mbt-fast predict``: the most probable classes of media files."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbt_fast.errors import ClipError, InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mbt_fast import MBT
    from mbt_fast.data.clip import Clip, ClipTransform

HELP = "Show the most probable classes of clips (video, sound or both)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mbt-fast predict``."""
    parser.add_argument("clips", nargs="+", metavar="CLIP", help="a media file")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--checkpoint", metavar="DIR", help="weights that save_pretrained or convert wrote"
    )
    weights.add_argument(
        "--model",
        metavar="NAME",
        default="mbt_base",
        help="without a checkpoint: a registered model with random weights (default: mbt_base)",
    )
    parser.add_argument("--labels", metavar="FILE", help="class names: one per line, or CSV")
    parser.add_argument("--top", type=_positive, default=5, help="classes to show (default: 5)")
    parser.add_argument(
        "--views", type=_positive, default=4, help="windows of a long clip (default: 4)"
    )
    parser.add_argument(
        "--stride",
        type=float,
        help="distance of frames, at 25 per second; 2 for the released checkpoints "
        "(default: the video lasts as long as the sound)",
    )
    parser.add_argument("--activation", choices=("sigmoid", "softmax"), default="sigmoid")
    parser.add_argument("--json", metavar="FILE", help="also write the results as JSON")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: cuda if there is one)")


def run(args: argparse.Namespace) -> int:
    """Print one table per clip. A clip that fails is one line on stderr, and the exit code is 2."""
    from tqdm import tqdm

    model, weights = _model(args)
    transform = _transform(model, args.stride)
    labels = _labels(args.labels, model.config.num_classes)
    device = _device(args.device)
    model.eval().to(device)
    if weights == "random":
        tqdm.write(f"{args.model} with random weights: the predictions mean nothing")

    clips, errors = [], []
    hide = True if len(args.clips) == 1 else None  # None shows the bar on terminals only
    for path in tqdm(args.clips, disable=hide, unit="clip"):
        try:
            record = _predict(model, path, transform, labels, args)
        except ClipError as error:
            errors.append({"path": path, "error": str(error)})
            tqdm.write(f"mbt-fast: error: {error}", file=sys.stderr)
        else:
            clips.append(record)
            tqdm.write(_table(record))
    if args.json:
        report = {"weights": weights, "activation": args.activation, "clips": clips}
        text = json.dumps({**report, "errors": errors}, indent=2)
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    return 2 if errors else 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _model(args: argparse.Namespace) -> "tuple[MBT, str]":
    """The model, and where its weights come from."""
    import mbt_fast

    if args.checkpoint is not None:
        return mbt_fast.MBT.from_pretrained(args.checkpoint), str(args.checkpoint)
    if args.model not in mbt_fast.list_models():
        names = ", ".join(mbt_fast.list_models())
        raise InputError(f"--model must be one of {names}, got {args.model!r}")
    return mbt_fast.create_model(args.model), "random"


def _transform(model: "MBT", stride: float | None) -> "ClipTransform":
    from mbt_fast.data.clip import ClipTransform

    try:
        return ClipTransform.from_config(model.config, stride=stride)
    except ValueError as error:
        raise InputError(str(error)) from error


def _labels(path: str | None, num_classes: int) -> list[str]:
    from mbt_fast.data.labels import read_labels

    if path is None:
        return [str(index) for index in range(num_classes)]
    return read_labels(path, num_classes)


def _device(name: str | None) -> "torch.device":
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used: {reason}") from error
    return device


def _predict(
    model: "MBT",
    path: str,
    transform: "ClipTransform",
    labels: list[str],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """What is known of a clip, and its most probable classes, as plain data."""
    from mbt_fast.data.clip import load_clip

    clip = load_clip(path, transform, n_views=args.views)
    probabilities = _probabilities(model, clip, args.activation)
    values, indices = probabilities.topk(min(args.top, len(labels)))
    ranked = zip(values.tolist(), indices.tolist(), strict=True)
    return {
        "path": clip.path,
        "seconds": clip.duration,
        "streams": dict(clip.formats),
        "absent": [m for m in model.config.modalities if m not in clip.inputs],
        "views": clip.n_views,
        "classes": [
            {"index": index, "label": labels[index], "probability": value}
            for value, index in ranked
        ],
    }


def _probabilities(model: "MBT", clip: "Clip", activation: str) -> "Tensor":
    """Probability of each class; logits are averaged over the views, as in the paper."""
    import torch

    weight = model.head.weight
    inputs = {m: view.to(weight.device, weight.dtype) for m, view in clip.inputs.items()}
    with torch.inference_mode():
        logits = model(inputs).float().mean(0)
        return logits.sigmoid() if activation == "sigmoid" else logits.softmax(-1)


def _table(record: dict[str, Any]) -> str:
    from tabulate import tabulate

    streams = [f"{modality} ({form})" for modality, form in record["streams"].items()]
    lines = [
        record["path"],
        f"  {record['seconds']:.2f} s, {record['views']} view{'s' * (record['views'] > 1)}",
        f"  uses {' and '.join(streams)}",
        *(f"  {modality} is absent" for modality in record["absent"]),
    ]
    rows = [
        (rank, entry["label"], entry["probability"])
        for rank, entry in enumerate(record["classes"], start=1)
    ]
    headers = ("rank", "class", "probability")
    table = tabulate(rows, headers, floatfmt=".4f", disable_numparse=[1])
    return "\n".join((*lines, table, ""))
