"""The page of a run: its curves and scores, in one file."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbt_fast.checkpoint.files import replacing
from mbt_fast.profiling import plots
from mbt_fast.profiling.page import Section, render
from mbt_fast.train.config import TrainConfig
from mbt_fast.train.log import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 400  # of a curve; more are not seen
SCORES = ("mAP", "top1", "top5", "verb", "noun", "action")
NEEDED = ("jinja2", "matplotlib")


def missing() -> str:
    """Why no page can be written, in words; empty if one can."""
    absent = " and ".join(name for name in NEEDED if find_spec(name) is None)
    return f'report.html needs {absent}; pip install "mbt-fast[train]"' if absent else ""


def write(
    path: Path, config: TrainConfig, records: Sequence[Record], broken: Sequence[Record]
) -> None:
    """Write the page, or nothing if ``missing`` says so.

    Args:
        path: The file.
        config: Of the run.
        records: Of the log.
        broken: Clips that could not be read.

    Raises:
        OSError: The file cannot be written.
    """
    if missing():
        return
    train = [record for record in records if record["kind"] == "train"]
    evals = [record for record in records if record["kind"] == "eval"]
    sections = [_scores(evals), _curves(train, evals), _speed(train), _unreadable(broken)]
    sections.append(Section("Configuration", code=config.to_toml()))
    last = train[-1] if train else {"step": 0, "epoch": 0}
    conditions = f"Step {last['step']}, epoch {last['epoch']}. Seed {config.train.seed}."
    page = render("Training run", conditions, [section for section in sections if section])
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def scores_of(record: Record) -> dict[str, float]:
    """The scores among the values of a record."""
    return {name: record[name] for name in record if _is_score(name) and record[name] is not None}


def line(done: str, record: Record) -> str:
    """What was done and, if there are any, its scores, in one line."""
    scores = [f"{name} {value:.4f}" for name, value in scores_of(record).items()]
    if not scores:
        return done
    broken = f", {len(record['broken'])} broken" if record.get("broken") else ""
    return f"{done}: {', '.join(scores)} ({record['n']} clips{broken}, views: {record['views']})"


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``POINTS`` points: the means of equally many neighbours."""
    size = -(-len(points) // POINTS) or 1
    parts = [points[first : first + size] for first in range(0, len(points), size)]
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts
    ]


def _is_score(name: str) -> bool:
    """Whether a record's value is a score, of one head or of all."""
    return name.partition("/")[0] in SCORES


def _scores(evals: Sequence[Record]) -> Section | None:
    if not evals:
        return None
    names = list(dict.fromkeys(name for record in evals for name in record if _is_score(name)))
    headers = ["step", "epoch", "clips of", "views", "n", *names]
    rows = [
        [
            *(str(record[key]) for key in ("step", "epoch", "split", "views", "n")),
            *("-" if record.get(name) is None else f"{record[name]:.4f}" for name in names),
        ]
        for record in reversed(evals)
    ]
    alike = [record for record in evals if record["views"] == evals[0]["views"]]
    series = {name: _points(alike, name) for name in names}
    return Section("Scores", table=(headers, rows), plots=[_plot(series, "score")])


def _curves(train: Sequence[Record], evals: Sequence[Record]) -> Section | None:
    if not train:
        return None
    names = [name for name in train[0] if name.partition("/")[0] == "loss"]
    return Section(
        "Loss",
        plots=[
            _plot({name: _points(train, name) for name in names}, "loss"),
            _plot({"": _points(train, "lr")}, "learning rate"),
            _plot({"": _points(train, "grad_norm")}, "norm of the gradient"),
        ],
    )


def _speed(train: Sequence[Record]) -> Section | None:
    if not train:
        return None
    wait = [(x, 100 * y) for x, y in _points(train, "data_wait")]
    return Section(
        "Speed",
        "The share of time in which the model waits for data says which of the two is too slow.",
        plots=[
            _plot({"": _points(train, "clips_per_second")}, "clips per second"),
            _plot({"": wait}, "waiting for data, %"),
        ],
    )


def _unreadable(broken: Sequence[Record]) -> Section | None:
    if not broken:
        return None
    rows = [[record["id"], record["error"]] for record in broken[:POINTS]]
    text = f"{len(broken)} clips could not be read, and were replaced by others."
    return Section("Broken clips", text, table=(["id", "reason"], rows))


def _points(records: Sequence[Record], name: str) -> list[tuple[float, float]]:
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return thinned(points)


def _plot(series: dict[str, list[tuple[float, float]]], ylabel: str) -> str:
    """Lines over the steps; one without a name has no legend."""

    def draw(axes: "Axes") -> None:
        for name, points in series.items():
            x, y = zip(*points, strict=True) if points else ((), ())
            few: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(points) < 20 else {}
            axes.plot(x, y, label=name, **few)
        axes.set(xlabel="step", ylabel=ylabel)
        if len(series) > 1:
            axes.legend()

    return plots.svg(draw)
