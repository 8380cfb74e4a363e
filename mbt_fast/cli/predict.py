"""``mbt-fast predict``: the most probable classes of media files."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mbt_fast.checkpoint.runs import read_state
from mbt_fast.cli.outputs import check_writable
from mbt_fast.cli.prediction import (
    notes_on,
    predict_clip,
    pretrained_model,
    random_model,
    table,
)
from mbt_fast.data import ClipTransform, load_clip, read_labels
from mbt_fast.data.classes import TASKS, head_sizes
from mbt_fast.data.transform import ModelSizes
from mbt_fast.errors import ClipError, InputError, as_input_error
from mbt_fast.models.saved import Model
from mbt_fast.pictures.explain import Explainer
from mbt_fast.profiling.machine import choose_device

HELP = "Show the most probable classes of clips (video, sound or both)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mbt-fast predict``."""
    parser.add_argument("clips", nargs="+", metavar="CLIP", help="a media file")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="weights that save_pretrained or convert wrote, or a run (RUN/best: its best weights)",
    )
    weights.add_argument(
        "--model",
        metavar="NAME",
        default="mbt_base",
        help="without a checkpoint: a registered model with random weights (default: mbt_base)",
    )
    parser.add_argument(
        "--labels", metavar="FILE", help="class names: one per line, or CSV (default: the run's)"
    )
    parser.add_argument(
        "--task", choices=TASKS, help="what the model was trained for (default: as the run says)"
    )
    parser.add_argument(
        "--top", type=_positive, default=5, help="classes to show, of each head (default: 5)"
    )
    parser.add_argument(
        "--views", type=_positive, default=4, help="windows of a long clip (default: 4)"
    )
    parser.add_argument(
        "--stride",
        type=float,
        help="distance of frames, at 25 per second; 2 for the released checkpoints "
        "(default: the run's; or the video lasts as long as the sound)",
    )
    parser.add_argument(
        "--spec-mean", type=float, metavar="X", help="subtracted from the log-mel spectrogram"
    )
    parser.add_argument(
        "--spec-std",
        type=float,
        metavar="X",
        help="divides it (default of both: the run's, or AudioSet's)",
    )
    parser.add_argument(
        "--activation",
        choices=("sigmoid", "softmax"),
        help="default: as the run was trained, or sigmoid",
    )
    parser.add_argument(
        "--errors",
        choices=("strict", "tolerate"),
        default="tolerate",
        help="what to do with a damaged clip: refuse it, or skip its damaged packets and say how "
        "many (default: tolerate)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the results as JSON")
    parser.add_argument(
        "--explain",
        metavar="DIR",
        help="also write a page and a picture per clip: where attention goes (attention rollout)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:index]")


def run(args: argparse.Namespace) -> int:
    """Print one table per clip. A clip that fails is one line on stderr, and the exit code is 2."""
    from tqdm import tqdm

    if args.json:
        check_writable(Path(args.json))
    explainer = Explainer(Path(args.explain)) if args.explain else None
    device = choose_device(args.device)
    random = args.checkpoint is None
    model: Model = random_model(args.model) if random else pretrained_model(args.checkpoint)
    trained = {} if random else read_state(args.checkpoint)
    transform = _transform(model.config, args, trained.get("front_end", {}))
    labels = _labels(args.labels, model.config.num_classes, trained.get("labels"))
    settings = trained.get("config", {})
    task = _task(args.task, settings)
    activation = args.activation or _activation(task)
    # The names that are shown may be others, and one may occur twice.
    heads = _heads(trained.get("labels", labels), task) if activation == "softmax" else ()
    masks = settings.get("data.mask_padding", False)
    model.eval().to(device)
    notes = notes_on(model, transform, of_run=bool(trained))
    if random:
        notes = [f"{args.model} with random weights: the predictions mean nothing"]
    for note in notes:
        tqdm.write(note)

    def predict(path: str) -> dict[str, Any]:
        clip = load_clip(path, transform, n_views=args.views, errors=args.errors)
        options = {"top": args.top, "activation": activation, "heads": heads}
        record = predict_clip(model, clip, labels, mask_padding=masks, **options)
        if explainer is not None:
            files = explainer.write(model, clip, record, mask_padding=masks)
            record["pictures"] = [str(file) for file in files]
        return record

    report: dict[str, Any] = {
        "weights": "random" if random else args.checkpoint,
        "activation": activation,
        "notes": notes,
        "clips": [],
        "errors": [],
    }
    try:
        _predict_all(args.clips, predict, report)
    finally:  # after Ctrl-C too
        if args.json:
            text = json.dumps(report, indent=2, allow_nan=False)
            Path(args.json).write_text(text + "\n", encoding="utf-8")
    return 2 if report["errors"] else 0


def _predict_all(
    paths: list[str], predict: Callable[[str], dict[str, Any]], report: dict[str, Any]
) -> None:
    """Print each clip's table, and add the clip to the report."""
    from tqdm import tqdm

    hide = True if len(paths) == 1 else None  # None shows the bar on terminals only
    for path in tqdm(paths, disable=hide, unit="clip"):
        try:
            record = predict(path)
        except ClipError as error:
            report["errors"].append({"path": path, "error": str(error)})
            tqdm.write(f"mbt-fast: error: {error}", file=sys.stderr)
        else:
            report["clips"].append(record)
            tqdm.write(table(record))


def _transform(
    config: ModelSizes, args: argparse.Namespace, front_end: Mapping[str, Any]
) -> ClipTransform:
    """What the model takes: the front end of its run, but for what the options say."""
    options = {"stride": args.stride, "mean": args.spec_mean, "std": args.spec_std}
    given = {name: value for name, value in options.items() if value is not None}
    with as_input_error():
        return ClipTransform.from_run(config, {**front_end, **given})


def _labels(path: str | None, num_classes: int, trained: list[str] | None) -> list[str]:
    if path is not None:
        return read_labels(path, num_classes)
    return trained or [str(index) for index in range(num_classes)]


def _task(given: str | None, settings: Mapping[str, Any]) -> str | None:
    """What the model was trained for; ``None`` if neither the run nor the user says so."""
    known = settings.get("train.task")
    if known and given not in (None, known):
        raise InputError(f"--task must be that of the run, {known!r}, got {given!r}")
    return known or given


def _activation(task: str | None) -> str:
    """Classes of a clip exclude one another, but for those of a task with many labels."""
    return "sigmoid" if task in (None, "multilabel") else "softmax"


def _heads(names: Sequence[str], task: str | None) -> tuple[int, ...]:
    """How many classes each head has. Without a task, names may be those of verbs and nouns."""
    epic = names[0].startswith("verb:") and names[-1].startswith("noun:")
    return tuple(head_sizes(names, task or ("verb_noun" if epic else "single")).values())


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
