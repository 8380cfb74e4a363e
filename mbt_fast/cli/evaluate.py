"""``mbt-fast eval``: the scores of a trained model."""

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

import mbt_fast
from mbt_fast.cli.outputs import check_writable
from mbt_fast.data import Manifest
from mbt_fast.data.classes import TASKS, head_sizes
from mbt_fast.dispatch import check_name
from mbt_fast.errors import InputError, as_input_error
from mbt_fast.profiling.machine import DTYPES, choose_device, choose_dtype, device_name, dtype_name
from mbt_fast.train.evaluate import per_class, score, summary
from mbt_fast.train.predictions import Predictions, predict
from mbt_fast.train.trained import Trained, load_trained

HELP = "Score a trained model on the clips of a manifest."
ALL = "all"
_SHOWN = 5  # broken clips


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mbt-fast eval``."""
    parser.add_argument("run_folder", metavar="RUN", help="a training run, RUN/best, or weights")
    parser.add_argument("manifest", metavar="MANIFEST", help="the clips and their labels")
    parser.add_argument(
        "--views", type=int, default=4, help="windows of a clip, logits averaged (default: 4)"
    )
    parser.add_argument(
        "--modalities",
        metavar="NAMES",
        help="what the model is given, separated by commas; all: a record for each subset "
        "(default: everything, one record)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records")
    parser.add_argument(
        "--submission", type=Path, metavar="FILE.pt", help="write Epic-Kitchens' result format"
    )
    add = parser.add_argument_group("how it runs").add_argument
    add("--batch-size", type=int, default=16, help="windows at a time (default: 16)")
    add("--workers", type=int, default=2, help="processes that read clips (default: 2)")
    add("--device", default="auto", help="auto, cpu or cuda[:index]")
    add("--dtype", choices=("auto", *DTYPES), help="of autocast (default: that of the run)")
    add("--backend", default="auto", help="backend of every op; see mbt-fast info")
    add("--errors", choices=("strict", "tolerate"), help="what to do with damaged packets")
    add = parser.add_argument_group("what a run knows, and other weights do not").add_argument
    add("--labels", metavar="FILE", help="class names: one per line, or CSV")
    add("--task", choices=TASKS, help="what the model was trained for")
    add("--stride", type=float, help="distance of frames, at 25 per second")
    add("--spec-mean", type=float, metavar="X", help="subtracted from the log-mel spectrogram")
    add("--spec-std", type=float, metavar="X", help="divides it")


def run(args: argparse.Namespace) -> int:
    """Score, print and write."""
    _check(args)
    device = choose_device(args.device)
    trained = _load(args)
    manifest = Manifest.read(args.manifest)
    targets = _targets(trained, manifest, required=args.submission is None)
    dtype, _ = choose_dtype(args.dtype or trained.settings.get("train.dtype", "float32"), device)
    found = predict(
        trained.model.set_backend(args.backend).to(device),
        manifest,
        trained.transform,
        subsets=_subsets(trained, args.modalities),
        views=args.views,
        batch_size=args.batch_size,
        workers=args.workers,
        device=device,
        dtype=dtype,
        mask_padding=trained.settings.get("data.mask_padding", False),
        errors=args.errors or trained.settings.get("data.errors", "strict"),
    )
    found = found or []  # it is None only where it is stopped
    _check_scored(found[-1], manifest)  # it is given all that the others are
    records = [
        _record(predictions, manifest, args.views, trained, targets) for predictions in found
    ]
    _show(records)
    if args.json:
        facts = {
            "mbt_fast": mbt_fast.__version__,
            "manifest": str(args.manifest),
            "manifest_hash": manifest.hash,
            **trained.record(),
            "device": device_name(device),
            "dtype": dtype_name(dtype),
            "records": records,
        }
        text = json.dumps(facts, indent=1, allow_nan=False)
        args.json.write_text(text + "\n", encoding="utf-8")
    if args.submission:
        _write_submission(args.submission, found[-1], manifest, trained)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what can be refused before anything is read."""
    for name, least in (("views", 1), ("batch_size", 1), ("workers", 0)):
        value = getattr(args, name)
        if value < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    for path in filter(None, (args.json, args.submission)):
        check_writable(path)
    with as_input_error():
        check_name(args.backend)


def _load(args: argparse.Namespace) -> Trained:
    options = {"stride": args.stride, "mean": args.spec_mean, "std": args.spec_std}
    given = {name: value for name, value in options.items() if value is not None}
    trained = load_trained(args.run_folder, labels=args.labels, task=args.task, front_end=given)
    if args.submission and trained.task != "verb_noun":
        raise InputError(f"--submission must go with task 'verb_noun', got {trained.task!r}")
    return trained


def _targets(trained: Trained, manifest: Manifest, required: bool) -> torch.Tensor | None:
    """What to score against; a test set that is submitted elsewhere has no labels."""
    try:
        return manifest.targets(trained.names, trained.task)
    except InputError as error:
        if required:
            raise
        print(f"not scored: {error}")
        return None


def _subsets(trained: Trained, given: str | None) -> list[tuple[str, ...]]:
    modalities = tuple(trained.transform.windows)
    if given == ALL:
        sizes = range(1, len(modalities) + 1)
        return [subset for size in sizes for subset in combinations(modalities, size)]
    names = modalities if given is None else tuple(given.split(","))
    unknown = [name for name in names if name not in modalities]
    if unknown:
        raise InputError(
            f"--modalities must be {ALL} or some of {', '.join(modalities)}, got {given!r}"
        )
    return [tuple(name for name in modalities if name in names)]


def _check_scored(predictions: Predictions, manifest: Manifest) -> None:
    """Refuse a manifest of which no clip can be scored."""
    if not len(predictions.rows):
        reason = next(iter(predictions.broken.values()), "none has such a modality")
        raise InputError(
            f"{manifest.path}: no clip could be scored from "
            f"{' and '.join(predictions.modalities)}: {reason}"
        )


def _record(
    predictions: Predictions,
    manifest: Manifest,
    views: int,
    trained: Trained,
    targets: torch.Tensor | None,
) -> dict[str, Any]:
    record = summary(predictions, manifest, views)
    if targets is None:
        return record
    what = (predictions, targets, trained.task, trained.names)
    return {**record, **score(*what), "per_class": per_class(*what)}


def _show(records: list[dict[str, Any]]) -> None:
    """Print a row for each record, and what to know before believing it."""
    from tabulate import tabulate

    facts = {"absent", "broken", "constant", "modalities", "per_class"}
    rows = [
        {
            "modalities": " + ".join(record["modalities"]),
            **{name: value for name, value in record.items() if name not in facts},
        }
        for record in records
    ]
    print(tabulate(rows, "keys", floatfmt=".4f", missingval="none"))
    for modality, count in records[-1]["absent"].items():
        if count:
            print(f"{modality} is absent from {count} of {records[-1]['n']} clips")
    broken = records[-1]["broken"]
    if broken:
        print(f"clips left out, because they cannot be read: {len(broken)}")
        print(*(f"  {clip['error']}" for clip in broken[:_SHOWN]), sep="\n")
    for record in records:
        if record["constant"]:
            names = " and ".join(record["modalities"])
            print(f"alarm: all clips get the same logits from {names}")


def _write_submission(
    path: Path, predictions: Predictions, manifest: Manifest, trained: Trained
) -> None:
    """Write what the challenge's scripts read: a list with the scores of each narration."""
    n_verbs = head_sizes(trained.names, trained.task)["verb"]
    rows = zip(predictions.rows.tolist(), predictions.logits.tolist(), strict=True)
    results = [
        {
            "verb_output": logits[:n_verbs],
            "noun_output": logits[n_verbs:],
            "narration_id": manifest[row].id,
        }
        for row, logits in rows
    ]
    torch.save(results, path)
