"""The parts of a picture, drawn by matplotlib. Every function draws on an empty figure.

Maps have one hue, that of Okabe and Ito's vermilion, over grey: its strength is the share.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mbt_fast.pictures.view import Sound, Video, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HUE = (0.835, 0.369, 0.0)
STRONGEST = 0.6  # opacity of the largest share of a row: what is under it can still be seen
WIDTH = 11.0  # inches of a timeline
LEFT, RIGHT, GAP = 0.6, 1.0, 0.28  # inches beside and between the axes of a timeline
BOTTOM, TOP = 0.45, 0.25
SOUND_HEIGHT, LEAST_FRAME, TALLEST_FRAME, MOST_FRAMES = 1.5, 0.85, 1.6, 8
CELLS_WITH_NUMBERS = 48

Canvas = Any  # a Figure or a SubFigure of matplotlib
Ends = tuple[float, float]  # the shares that have no hue, and all of it
DrawRow = Callable[["Axes"], Ends]


def timeline_size(view: View) -> tuple[float, float]:
    """Width and height of ``draw_timeline`` in inches."""
    rows = [height for _, height in _rows(view)]
    return WIDTH, BOTTOM + TOP + sum(rows) + GAP * (len(rows) - 1)


def draw_timeline(canvas: Canvas, view: View) -> None:
    """Frames and spectrogram under their maps, over one axis of seconds."""
    width, height = timeline_size(view)
    top = height - TOP
    rows = _rows(view)
    for number, (draw, size) in enumerate(rows, start=1):
        top -= size
        low, tall = top / height, size / height
        axes = canvas.add_axes((LEFT / width, low, (width - LEFT - RIGHT) / width, tall))
        scale = canvas.add_axes((1 - 0.85 * RIGHT / width, low, 0.1 / width, tall))
        _draw_scale(scale, *draw(axes))
        axes.set_xlim(*view.span)
        axes.grid(visible=False)
        axes.title.set_fontsize(9)
        axes.tick_params(labelbottom=number == len(rows))
        top -= GAP
    axes.set_xlabel("seconds")


def draw_sum(canvas: Canvas, view: View) -> None:
    """The map summed over all frames, on the middle one: the picture of the paper's Figure 6."""
    if view.video is None:
        return
    frames, shares = view.video.frames, view.video.shares.sum(dim=0)
    axes = canvas.add_subplot()
    height, width = frames.shape[1:]
    ends = _ends(shares)
    _draw_under_map(axes, frames[len(frames) // 2], shares, (0, width, height, 0), ends)
    axes.set_aspect("equal")
    axes.set_axis_off()
    low, high = percents(*ends)
    axes.set_title(f"summed over all frames: {low} to {high}", fontsize=9)


def draw_shares(canvas: Canvas, view: View) -> None:
    """Where the mass goes, one bar for each classifier and one for their mean."""
    axes = canvas.add_subplot()
    places = list(dict.fromkeys(place for row in view.shares.values() for place in row))
    names = list(view.shares)
    starts = [0.0] * len(names)
    for index, place in enumerate(places):
        widths = [100 * view.shares[name].get(place, 0.0) for name in names]
        axes.barh(names, widths, left=starts, label=place, color=f"C{index}", height=0.6)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="share of the rollout, %", xlim=(0, 100))
    axes.grid(visible=False, axis="y")
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(places),
        borderaxespad=0.2,
        handlelength=1,
        columnspacing=1,
        fontsize=8,
    )


def draw_exchange(canvas: Canvas, view: View) -> None:
    """What each modality reads from and writes to every bottleneck token, layer by layer."""
    panels = [
        (f"{m} {verb}", flows[m])
        for m in view.read
        for verb, flows in (("reads", view.read), ("writes", view.written))
    ]
    most = max(flow.max().item() for _, flow in panels)
    grid = canvas.subplots(-(-len(panels) // 2), 2, sharex=True, sharey=True, squeeze=False)
    for axes, (title, flow) in zip(grid.flat, panels, strict=False):
        layers, tokens = flow.shape
        first = view.first_layer
        extent = (0.5, tokens + 0.5, first + layers - 0.5, first - 0.5)
        colours = _overlay(flow, (0.0, most))
        axes.imshow(colours, extent=extent, aspect="auto", interpolation="nearest")
        if flow.numel() <= CELLS_WITH_NUMBERS:
            for layer in range(layers):
                for token in range(tokens):
                    text = _percent(flow[layer, token].item())
                    axes.text(token + 1, first + layer, text, ha="center", va="center", fontsize=8)
        axes.set_title(f"{title}, %", fontsize=8)
        axes.grid(visible=False)
        axes.set_xticks(_some(range(1, tokens + 1)))
        axes.set_yticks(_some(range(first, first + layers)))
    for axes in grid[-1]:
        axes.set_xlabel("bottleneck token")
    for axes in grid[:, 0]:
        axes.set_ylabel("layer")


def _rows(view: View) -> list[tuple[DrawRow, float]]:
    """What draws the axes of a timeline, and their heights in inches."""
    rows: list[tuple[DrawRow, float]] = []
    if view.video is not None:
        start, end = view.span
        inches = (WIDTH - LEFT - RIGHT) * view.video.seconds / (end - start)
        count = max(1, min(MOST_FRAMES, len(view.video.shares), int(inches / LEAST_FRAME)))
        ratio = view.video.frames.shape[2] / view.video.frames.shape[1]
        tall = min(inches / count / ratio, TALLEST_FRAME)
        seconds = view.video.seconds * tall * ratio / inches
        rows.append((partial(_draw_frames, view.video, count, seconds), tall))
    if view.sound is not None:
        rows.append((partial(_draw_sound, view.sound), SOUND_HEIGHT))
    return rows


def _draw_frames(video: Video, count: int, seconds: float, axes: "Axes") -> Ends:
    """Evenly spaced frames, so many seconds wide, each from its own time on."""
    parts, ends = len(video.shares), _ends(video.shares)
    for index in range(count):
        part = index * parts // count
        left = video.times[part]
        extent = (left, left + seconds, 0, 1)
        _draw_under_map(axes, video.frames[part], video.shares[part], extent, ends)
    axes.set(ylim=(0, 1), yticks=[], title=f"{count} of {parts} frames")
    return ends


def _draw_sound(sound: Sound, axes: "Axes") -> Ends:
    """The spectrogram, low bands at the bottom."""
    low, high = sound.spectrogram.quantile(torch.tensor([0.01, 0.99])).tolist()
    grey = ((sound.spectrogram - low) / max(high - low, 1e-6)).clamp(0, 1)
    ends = _ends(sound.shares)
    bands = sound.spectrogram.shape[1]
    extent = (sound.start, sound.start + sound.seconds, 0, bands)
    _draw_under_map(axes, grey.mT.flip(0), sound.shares.mT.flip(0), extent, ends)
    axes.set(ylim=(0, bands), ylabel="mel band", title="log-mel spectrogram")
    return ends


def _draw_under_map(
    axes: "Axes", grey: Tensor, shares: Tensor, extent: tuple[float, ...], ends: Ends
) -> None:
    options: dict[str, Any] = {"extent": extent, "interpolation": "nearest", "aspect": "auto"}
    axes.imshow(grey.numpy(), cmap="gray", vmin=0, vmax=1, **options)
    axes.imshow(_overlay(shares, ends), **options)


def _draw_scale(axes: "Axes", low: float, high: float) -> None:
    """The hue from one end to the other, with both shares."""
    steps = torch.linspace(1, 0, 64)[:, None]
    axes.imshow(_overlay(steps, (0.0, 1.0)), extent=(0, 1, 0, 1), aspect="auto")
    axes.set(xticks=[], ylim=(0, 1))
    axes.set_yticks([0, 1], percents(low, high))
    axes.yaxis.tick_right()
    axes.grid(visible=False)


def _overlay(shares: Tensor, ends: Ends) -> Any:
    """Shares as colours ``[h, w, 4]``: one hue, the more opaque the larger the share."""
    low, high = ends
    strength = (shares.double() - low) / ((high - low) or 1.0)
    hue = torch.tensor(HUE, dtype=torch.float64).expand(*shares.shape, 3)
    return torch.cat([hue, STRONGEST * strength[..., None]], dim=-1).numpy()


def _ends(shares: Tensor) -> Ends:
    return shares.min().item(), shares.max().item()


def _some(numbers: range) -> range:
    """So few ticks that they can be read."""
    return numbers[:: max(1, len(numbers) // 8)]


def _percent(share: float) -> str:
    """A share as a number of at most two digits after the point; what is not zero is not "0"."""
    return "<0.01" if 0 < share < 5e-5 else f"{round(100 * share, 2):.2g}"


def percents(low: float, high: float) -> tuple[str, str]:
    """Two shares as text, with so many digits that it tells them apart."""
    for digits in range(2, 7):
        texts = f"{100 * low:.{digits}g} %", f"{100 * high:.{digits}g} %"
        if texts[0] != texts[1]:
            break
    return texts
