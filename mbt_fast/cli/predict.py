"""``mbt-fast predict``: the most probable classes of media files."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbt_fast.errors import ClipError, InputError
from mbt_fast.profiling import machine

if TYPE_CHECKING:
    from torch import Tensor

    from mbt_fast import MBT
    from mbt_fast.data.clip import Clip, ClipTransform

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
    parser.add_argument(
        "--spec-mean", type=float, metavar="X", help="subtracted from the log-mel spectrogram"
    )
    parser.add_argument(
        "--spec-std", type=float, metavar="X", help="divides it (default of both: AudioSet's)"
    )
    parser.add_argument("--activation", choices=("sigmoid", "softmax"), default="sigmoid")
    parser.add_argument("--json", metavar="FILE", help="also write the results as JSON")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:index]")


def run(args: argparse.Namespace) -> int:
    """Print one table per clip. A clip that fails is one line on stderr, and the exit code is 2."""
    from tqdm import tqdm

    if args.json:
        _check_writable(Path(args.json))
    device = machine.choose_device(args.device)
    model, weights = _model(args)
    transform = _transform(model, args)
    labels = _labels(args.labels, model.config.num_classes)
    model.eval().to(device)
    notes = _notes(model, transform, args)
    for note in notes:
        tqdm.write(note)

    report: dict[str, Any] = {"weights": weights, "activation": args.activation, "notes": notes}
    report |= {"clips": [], "errors": []}
    try:
        _predict_all(model, transform, labels, args, report)
    finally:  # after Ctrl-C too
        if args.json:
            text = json.dumps(report, indent=2, allow_nan=False)
            Path(args.json).write_text(text + "\n", encoding="utf-8")
    return 2 if report["errors"] else 0


def _predict_all(
    model: "MBT",
    transform: "ClipTransform",
    labels: list[str],
    args: argparse.Namespace,
    report: dict[str, Any],
) -> None:
    """Print each clip's table, and add the clip to the report."""
    from tqdm import tqdm

    hide = True if len(args.clips) == 1 else None  # None shows the bar on terminals only
    for path in tqdm(args.clips, disable=hide, unit="clip"):
        try:
            record = _predict(model, path, transform, labels, args)
        except ClipError as error:
            report["errors"].append({"path": path, "error": str(error)})
            tqdm.write(f"mbt-fast: error: {error}", file=sys.stderr)
        else:
            report["clips"].append(record)
            tqdm.write(_table(record))


def _check_writable(path: Path) -> None:
    """Raise what writing would raise, before the work instead of after it."""
    new = not path.exists()
    with path.open("a"):
        pass
    if new:
        path.unlink()


def _notes(model: "MBT", transform: "ClipTransform", args: argparse.Namespace) -> list[str]:
    """What to know before believing the predictions."""
    if args.checkpoint is None:
        return [f"{args.model} with random weights: the predictions mean nothing"]
    notes = []
    if not model.head.weight.any():
        notes.append(_ZERO_HEAD)
    if transform.spectrogram is not None:
        notes.append(_UNPUBLISHED)
    return notes


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _model(args: argparse.Namespace) -> "tuple[MBT, str]":
    """The model, and where its weights come from."""
    import mbt_fast

    if args.checkpoint is not None:
        if Path(args.checkpoint).is_file():
            raise InputError(
                f"--checkpoint must be a directory, got the file {args.checkpoint!r}; "
                "run mbt-fast convert first"
            )
        return mbt_fast.MBT.from_pretrained(args.checkpoint), str(args.checkpoint)
    if args.model not in mbt_fast.list_models():
        names = ", ".join(mbt_fast.list_models())
        raise InputError(f"--model must be one of {names}, got {args.model!r}")
    return _random_model(args.model), "random"


def _random_model(name: str) -> "MBT":
    """The same weights every time; the head, which a fresh model has zero, tells clips apart."""
    import torch

    import mbt_fast

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)
        model = mbt_fast.create_model(name)
        torch.nn.init.normal_(model.head.weight, std=_HEAD_STD)
    return model


def _transform(model: "MBT", args: argparse.Namespace) -> "ClipTransform":
    from mbt_fast.data.clip import ClipTransform

    options = {"stride": args.stride, "mean": args.spec_mean, "std": args.spec_std}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return ClipTransform.from_config(model.config, **given)
    except ValueError as error:
        raise InputError(str(error)) from error


def _labels(path: str | None, num_classes: int) -> list[str]:
    from mbt_fast.data.labels import read_labels

    if path is None:
        return [str(index) for index in range(num_classes)]
    return read_labels(path, num_classes)


def _predict(
    model: "MBT",
    path: str,
    transform: "ClipTransform",
    labels: list[str],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """What is known of a clip, and its most probable classes, as plain data.

    A probability that is NaN is ``None``, for JSON knows no NaN, and ranks last.
    """
    from mbt_fast.data.clip import load_clip

    clip = load_clip(path, transform, n_views=args.views)
    probabilities = _probabilities(model, clip, args.activation)
    undefined = probabilities.isnan()
    ranked = probabilities.masked_fill(undefined, -1).topk(min(args.top, len(labels))).indices
    return {
        "path": clip.path,
        "seconds": clip.duration,
        "streams": dict(clip.formats),
        "absent": [m for m in model.config.modalities if m not in clip.inputs],
        "views": clip.n_views,
        "undefined": int(undefined.sum()),
        "classes": [
            {
                "index": index,
                "label": labels[index],
                "probability": None if undefined[index] else probabilities[index].item(),
            }
            for index in ranked.tolist()
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
    if record["undefined"]:
        lines.append(f"  classes without a probability, for it is NaN: {record['undefined']}")
    rows = [
        (rank, entry["label"], entry["probability"])
        for rank, entry in enumerate(record["classes"], start=1)
    ]
    headers = ("rank", "class", "probability")
    table = tabulate(rows, headers, floatfmt=".4f", missingval="nan", disable_numparse=[1])
    return "\n".join((*lines, table, ""))
