"""The same run on every backend of a CPU: do the curves agree, how fast is each, and what waits.

``python -m examples.av_digits.systems --clips clips --out runs`` starts from the towers of seed 0.
Backends take turns, so that a drift of the machine hits all alike. Clips come from their mp4 files,
by two processes, or from the cache of decoded windows.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from benchmarks.machine import facts
from benchmarks.report import replace_block
from examples.av_digits.experiment import train
from examples.av_digits.plan import MODELS, Run
from examples.av_digits.record import README, RESULTS
from mbt_fast.profiling import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BACKENDS = ("reference", "sdpa", "auto", "cpu")
SOURCES = {  # of the clips: steps, and what differs from the recipe
    "cache": (200, ()),
    "mp4": (60, ("data.cache=", "data.workers=2")),
}
ROUNDS = 3
WARM = 10  # steps that are not timed
RECORD = RESULTS / "systems.json"

Curve = dict[str, list[float]]


def measure(clips: Path, runs: Path) -> dict[str, Any]:
    """Train on every backend in turn; what comes out, as JSON knows it.

    Args:
        clips: What ``data.py`` wrote.
        runs: The folder of all runs; those of before are kept, and not made again.
    """
    lines: dict[tuple[str, str], list[list[dict[str, Any]]]] = {}
    for source, (steps, changes) in SOURCES.items():
        for number in range(ROUNDS):
            for backend in (*BACKENDS[number:], *BACKENDS[:number]):
                run = Run("bottleneck-2", "sum", 0, MODELS["bottleneck-2"])
                more = (f"train.steps={steps}", f"train.backend={backend}", *changes)
                folder = runs / "systems" / f"{source}-{backend}-{number}"
                train(run.arguments(clips, runs, (*more, "train.log_every=1", "data.val=")), folder)
                log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
                lines.setdefault((source, backend), []).append(log)
    curves = {
        backend: [line["loss"] for line in lines["cache", backend][0]] for backend in BACKENDS
    }
    return {
        "machine": facts(),
        "loss": curves,
        "largest_difference": {b: max(differences(curves[b], curves)) for b in BACKENDS[1:]},
        "speed": {
            source: {
                backend: [_speed(log) for log in lines[source, backend]] for backend in BACKENDS
            }
            for source in SOURCES
        },
    }


def differences(curve: Sequence[float], curves: Mapping[str, Sequence[float]]) -> list[float]:
    """Relative difference of each step's loss to that of the first backend."""
    return [abs(a - b) / b for a, b in zip(curve, curves[BACKENDS[0]], strict=True)]


def _speed(log: Sequence[Mapping[str, float]]) -> dict[str, float]:
    timed = log[WARM:]
    seconds = mean(1 / line["clips_per_second"] for line in timed)
    waits = mean(line["data_wait"] / line["clips_per_second"] for line in timed)
    return {"clips_per_second": 1 / seconds, "data_wait": waits / seconds}


def block(record: Mapping[str, Any], files: Sequence[str]) -> str:
    """The README's block."""
    rows = []
    for backend in BACKENDS:
        cells = []
        for source in SOURCES:
            speeds = record["speed"][source][backend]
            rates = [speed["clips_per_second"] for speed in speeds]
            cells.append(f"{median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})")
            cells.append(f"{median(speed['data_wait'] for speed in speeds):.0%}")
        apart = record["largest_difference"].get(backend)
        rows.append(
            f"| `{backend}` | {' | '.join(cells)} | {'' if apart is None else f'{apart:.1e}'} |"
        )
    machine, steps = record["machine"], len(record["loss"][BACKENDS[0]])
    return "\n".join(
        (
            f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{files[1]}">\n'
            f'<img src="{files[0]}" width="680" alt="Loss of four backends; the table has the '
            'largest difference.">\n</picture>\n',
            "| backend | clips/s, cache | waits | clips/s, mp4 | waits | loss differs by |",
            "|---|---|---|---|---|---|",
            *rows,
            f"\nMedian of {ROUNDS} runs in turn (least to greatest). *Waits*: share of the time in "
            f"which the model waited for clips. The last column is the largest relative difference "
            f"to `{BACKENDS[0]}` in {steps} steps from the same seed. {machine['device']}, torch "
            f"{machine['torch']}, one thread for the model.\n",
        )
    )


def _draw(record: Mapping[str, Any], figure: "Figure") -> None:
    left, right = figure.subplots(1, 2)
    for index, backend in enumerate(BACKENDS):
        curve = record["loss"][backend]
        steps = range(1, len(curve) + 1)
        left.plot(steps, curve, label=backend, lw=4 - index)
        if index:
            right.plot(steps, differences(curve, record["loss"]), color=f"C{index}", lw=1)
    left.set(xlabel="step", ylabel="loss")
    left.legend()
    right.set(xlabel="step", ylabel=f"relative difference to {BACKENDS[0]}", yscale="log")
    right.yaxis.set_major_formatter("{x:.0e}")


def main() -> None:
    """Measure, if there are clips; then write record, figure and the README's block."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--clips", type=Path, help="what data.py wrote; without: the record's numbers"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of experiment.py's runs"
    )
    args = parser.parse_args()
    if args.clips:
        record = measure(args.clips.resolve(), args.out.resolve())
        RESULTS.mkdir(parents=True, exist_ok=True)
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    record = json.loads(RECORD.read_text())
    paths = plots.save_figure(lambda f: _draw(record, f), RESULTS / "curves.svg", size=(7.2, 3))
    files = [f"../../benchmarks/results/av_digits/{path.name}" for path in paths]
    README.write_text(replace_block(README.read_text(), "systems", block(record, files)))


if __name__ == "__main__":
    main()
