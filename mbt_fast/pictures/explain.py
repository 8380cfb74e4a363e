"""One page and one picture per clip: where attention goes, from each classifier to the input."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mbt_fast.data import Clip
from mbt_fast.errors import InputError
from mbt_fast.models.saved import Model
from mbt_fast.pictures import draw
from mbt_fast.pictures.view import View, views_of
from mbt_fast.profiling import plots
from mbt_fast.profiling.page import Section, render
from mbt_fast.rollout import rollout

SMALL = (4.6, 3.0)  # inches of the parts below a timeline
HEADING = 0.35  # inches
READING = """The maps are attention rollout (Abnar and Zuidema, 2020): from the CLS token of each
modality, attention is followed backwards through all layers, half of it staying in the residual
connection of each. A patch's share is what arrives there, and all shares sum to one. The scale
beside a row goes from its smallest share to its largest, so look at the numbers: an even map has
strong colours too.

Rollout says where attention goes. It does not say why the model decides as it does.

Tokens of a modality read from the bottleneck tokens and write to them in every fused layer. The
numbers are the share of the rollout that takes this way. Nobody reads what the last layer writes.
"""


class Explainer:
    """Writes a page and a picture per clip into a folder.

    Args:
        folder: Made if need be.

    Raises:
        InputError: The folder cannot be made, or a package for pictures is not installed.
    """

    def __init__(self, folder: Path) -> None:
        """Check before anything is decoded that pictures can be written."""
        plots.check_installed("jinja2", "matplotlib")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"pictures must go to a folder, got {folder}: {error}") from error
        self.folder = folder
        self._names: set[str] = set()

    def write(
        self, model: Model, clip: Clip, record: dict[str, Any], *, mask_padding: bool = False
    ) -> list[Path]:
        """Explain a clip.

        Args:
            model: In eval mode.
            clip: As the model was given it.
            record: Its most probable classes, as ``mbt-fast predict`` reports them.
            mask_padding: Whether the model was told where the clip ends.

        Returns:
            The page and the picture.

        Raises:
            OSError: A file cannot be written.
        """
        weight = next(model.head.parameters())
        inputs = {m: view.to(weight.device, weight.dtype) for m, view in clip.inputs.items()}
        lengths = {m: length.to(weight.device) for m, length in clip.lengths.items()}
        result = rollout(model, inputs, lengths if mask_padding else None)
        views = views_of(clip, result, model.config)
        name = self._name(clip.path)
        page, picture = (self.folder / f"{name}{suffix}" for suffix in (".html", ".png"))
        page.write_text(page_of(record, views), encoding="utf-8")
        size = _picture_size(views)
        plots.save_png(lambda figure: _draw_picture(figure, record, views), picture, size=size)
        return [page, picture]

    def _name(self, path: str) -> str:
        """The file's own name, with a number if another clip of this run has it."""
        stem = name = Path(path).stem
        number = 1
        while name in self._names:
            number += 1
            name = f"{stem}-{number}"
        self._names.add(name)
        return name


def page_of(record: dict[str, Any], views: Sequence[View]) -> str:
    """The page of a clip, in one file."""
    rows = [[entry["label"], _probability(entry)] for entry in record["classes"]]
    sections = [Section("Most probable classes", table=(["class", "probability"], rows))]
    sections += [_section(view) for view in views]
    sections.append(Section("How to read this", READING))
    streams = ", ".join(f"{m} ({form})" for m, form in record["streams"].items())
    conditions = f"{record['path']}\n{record['seconds']:.2f} s, {streams}"
    return render(Path(record["path"]).name, conditions, sections)


def _section(view: View) -> Section:
    size = draw.timeline_size(view)
    timeline = plots.figure_svg(_on(draw.draw_timeline, view), size=size, layout=None)
    parts = [plots.figure_svg(_on(part, view), size=SMALL) for part in _parts(view)]
    return Section(_title(view), wide=[timeline], plots=parts)


def _on(part: Any, view: View) -> plots.DrawFigure:
    return lambda figure: part(figure, view)


def _parts(view: View) -> list[Any]:
    """What there is to draw below the timeline."""
    parts: list[Any] = [] if view.video is None else [draw.draw_sum]
    parts.append(draw.draw_shares)
    return [*parts, draw.draw_exchange] if view.read else parts


def _title(view: View) -> str:
    start, end = view.span
    return f"From {start:.2f} s to {end:.2f} s"


def _probability(entry: dict[str, Any]) -> str:
    return "nan" if entry["probability"] is None else f"{entry['probability']:.4f}"


def _picture_size(views: Sequence[View]) -> tuple[float, float]:
    return draw.WIDTH, HEADING + sum(draw.timeline_size(view)[1] + SMALL[1] for view in views)


def _draw_picture(figure: Any, record: dict[str, Any], views: Sequence[View]) -> None:
    """The page as one picture: classes on top, then every view."""
    classes = ", ".join(f"{e['label']} {_probability(e)}" for e in record["classes"][:3])
    heights = [size for view in views for size in (draw.timeline_size(view)[1], SMALL[1])]
    bands = figure.subfigures(1 + len(heights), 1, height_ratios=[HEADING, *heights])
    bands[0].suptitle(f"{Path(record['path']).name}: {classes}", fontsize=10)
    for view, timeline, below in zip(views, bands[1::2], bands[2::2], strict=True):
        draw.draw_timeline(timeline, view)
        parts = _parts(view)
        columns = below.subfigures(1, len(parts), squeeze=False)[0]
        for part, column in zip(parts, columns, strict=True):
            part(column, view)
