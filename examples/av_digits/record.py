"""Gather the runs in one file, and make the plots and the README's block of it.

``python -m examples.av_digits.record RUNS`` reads what the runs left, ``log.jsonl`` and
``scores.json``, and prints the block. ``--write`` puts it in its place, with record and plots;
without ``RUNS`` they are made anew from the record.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.machine import facts
from benchmarks.report import replace_block
from examples.av_digits.figures import write_figures
from examples.av_digits.plan import MODELS, TOWERS
from examples.av_digits.scores import SCORES, state_of
from examples.av_digits.table import block
from mbt_fast import MBTConfig
from mbt_fast.checkpoint import load_pretrained
from mbt_fast.flops import training_flops

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "av_digits"
RECORD = RESULTS / "record.json"
README = Path(__file__).with_name("README.md")
CURVE = 40  # steps from one point of a curve to the next

Row = dict[str, Any]


def gather(runs: Path) -> dict[str, Any]:
    """Everything that is reported, as JSON knows it.

    Args:
        runs: The folder of all runs; those that are not finished are left out.
    """
    torch.set_num_threads(1)  # that of each run, for the facts
    found = {path.parent for path in runs.glob(f"seed-*/*/{SCORES}")}
    seeds = sorted({int(path.parent.name.removeprefix("seed-")) for path in found})
    rows = [
        _row(folder, name, seed)
        for seed in seeds
        for name in (*TOWERS, *MODELS)
        if (folder := runs / f"seed-{seed}" / name) in found
    ]
    return {"machine": facts(), "runs": rows}


def _row(folder: Path, name: str, seed: int) -> Row:
    config, _ = load_pretrained(folder)
    settings = state_of(folder)["config"]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    rates = [line["clips_per_second"] for line in steps]
    return {
        "name": name,
        "seed": seed,
        "model": _of_model(config),
        "train": {key: settings[f"train.{key}"] for key in ("steps", "lr", "batch_size", "loss")},
        "flops_per_clip": training_flops(config).total,
        "clips_per_second": len(rates) / sum(1 / rate for rate in rates),
        "data_wait": mean(line["data_wait"] for line in steps),
        "loss": {
            line["step"]: round(line["loss"], 4) for line in steps if not line["step"] % CURVE
        },
        "scores": json.loads((folder / SCORES).read_text()),
    }


def _of_model(config: MBTConfig) -> dict[str, Any]:
    keys = ("modalities", "fusion", "fusion_layer", "n_bottlenecks", "share_encoder")
    return {key: getattr(config, key) for key in keys}


def main() -> None:
    """Print what the runs gave, or write the record and what is made of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", type=Path, nargs="?", metavar="RUNS", help="what experiment.py left"
    )
    parser.add_argument("--write", action="store_true", help="the record, its plots and the README")
    args = parser.parse_args()
    record = gather(args.runs) if args.runs else json.loads(RECORD.read_text())
    if not args.write:
        print(block(record, []))
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    figures = write_figures(record["runs"], RESULTS)
    README.write_text(replace_block(README.read_text(), "result", block(record, figures)))


if __name__ == "__main__":
    main()
