"""Plots and pages: valid files with labels and conditions, light and dark, always the same."""

import sys
import xml.etree.ElementTree as ET

import pytest

from mbt_fast.cli.main import main
from mbt_fast.errors import InputError
from mbt_fast.profiling import page, plots
from mbt_fast.profiling.page import Section
from mbt_fast.profiling.tables import significant

SERIES = {
    "bottleneck (B = 4)": [(8, 1.5, 1.4, 1.7), (0, 2.0, None, None)],
    "vanilla & <own>": [(0, 4.0, None, None), (8, 3.0, None, None)],
}
GROUPS = {"attention": {"bfloat16": 4.21, "float32": 1.5}, "add_layer_norm": {"float32": 0.987}}


def draw_lines(axes):
    plots.lines(axes, SERIES, xlabel="fusion layer", ylabel="ms [p20-p80] $x_1$")


def draw_bars(axes):
    plots.bars(axes, GROUPS, ylabel="times as fast", reference=1)


def texts(svg):
    return ["".join(e.itertext()).strip() for e in ET.fromstring(svg).iter() if "text" in e.tag]


def test_lines_are_named_and_text_stays_text(tmp_path):
    light, dark = plots.save_plot(draw_lines, tmp_path / "x.svg")
    assert (light.name, dark.name) == ("x.svg", "x-dark.svg")
    for path, theme in ((light, plots.LIGHT), (dark, plots.DARK)):
        found = texts(path.read_text())
        assert {*SERIES, "fusion layer", "ms [p20-p80] $x_1$", "0", "8"} <= set(found)
        assert all(color in path.read_text() for color in (theme.text, *theme.series[:2]))


def test_equal_plots_are_equal_files(tmp_path):
    first, second = (
        [path.read_bytes() for path in plots.save_plot(draw_lines, tmp_path / f"{name}.svg")]
        for name in "ab"
    )
    assert first == second
    assert first[0] != first[1]
    assert b"<dc:date>" not in first[0]


def test_bars_have_values_and_equal_names_equal_colours():
    drawn = {}

    def draw(axes):
        draw_bars(axes)
        for container in axes.containers:
            drawn[container.get_label()] = {bar.get_facecolor() for bar in container}

    found = texts(plots.svg(draw))
    assert {"4.21", "1.50", "0.987", *drawn, *GROUPS, "times as fast"} <= {*found}
    assert [len(colors) for colors in drawn.values()] == [1, 1]
    assert drawn["bfloat16"] != drawn["float32"]


def test_error_bars_end_where_the_points_say():
    segments = []

    def draw(axes):
        draw_lines(axes)
        (bars,) = axes.containers[0].lines[2]
        segments.extend(bars.get_segments())

    plots.svg(draw)
    assert [[y for _, y in segment] for segment in segments] == [[2.0, 2.0], [1.4, 1.7]]


@pytest.mark.parametrize(("values", "starts_at_zero"), [((1, 4), True), ((40, 42), False)])
def test_the_axis_starts_at_zero_unless_values_are_close(values, starts_at_zero):
    bottom = []

    def draw(axes):
        points = [(x, y, None, None) for x, y in enumerate(values)]
        plots.lines(axes, {"a": points}, xlabel="x", ylabel="y")
        bottom.append(axes.get_ylim()[0])

    plots.svg(draw)
    assert (bottom[0] == 0) == starts_at_zero


def test_legend_and_bars_do_not_overlap():
    boxes = []

    def draw(axes):
        plots.bars(axes, {"g": {f"a long label {i}": 1.0 for i in range(5)}}, ylabel="y")
        axes.figure.draw_without_rendering()
        boxes.extend([axes.get_legend().get_window_extent(), axes.patch.get_window_extent()])

    plots.svg(draw)
    legend, inside = boxes
    assert legend.y0 >= inside.y1
    assert legend.x1 <= 4.6 * 100


def rendered():
    sections = [
        Section("Costs & <gains>", "one\n\ntwo <b>", plots=[plots.svg(draw_lines)] * 2),
        Section("Table", table=(["name", "a\nb"], [["r < s", "1"], ["t", "2"]]), code="x < y"),
    ]
    return page.render("T & <t>", "device: <CPU>\ncommand: a && b", sections)


def test_a_page_is_well_formed_escaped_and_complete():
    text = rendered()
    root = ET.fromstring(text)  # which <CPU> or <b> would break
    shown = "".join(root.itertext())
    for words in ("T & <t>", "device: <CPU>", "two <b>", "r < s", "x < y", "Costs & <gains>"):
        assert words in shown
    assert [cell.text for cell in root.iter("td")] == ["1", "2"]
    assert text.startswith("<!DOCTYPE html>")
    assert text == rendered()
    assert not {element.tag.rpartition("}")[2] for element in root.iter()} & {
        *("script", "link", "img", "iframe")
    }
    links = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith(("href", "src"))]
    assert all(link.startswith("#") for link in links)  # no network


def test_plots_of_a_page_follow_its_theme():
    svg = plots.svg(draw_lines)
    assert not any(color in svg for color in plots.LIGHT.names())
    style = next(ET.fromstring(rendered()).iter("style")).text
    for theme in (plots.LIGHT, plots.DARK):
        for color, name in theme.names().items():
            assert f"{name}: {color}" in style
            assert name in ("--grid", "--text", "--muted") or name.startswith("--series")
    assert "var(--series-1)" in svg


@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK], ids=["light", "dark"])
def test_colours_stand_out_from_the_page(theme):
    def luminance(color):
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    background = luminance("#ffffff" if theme is plots.LIGHT else "#14171a")
    for color, least in {theme.text: 7, theme.muted: 4.5, **dict.fromkeys(theme.series, 3)}.items():
        dark, light = sorted((luminance(color), background))
        assert (light + 0.05) / (dark + 0.05) >= least, color


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_what_is_not_installed_is_named_before_any_work(monkeypatch, tmp_path, capsys, module):
    original = plots.find_spec
    monkeypatch.setattr(plots, "find_spec", lambda name: None if name == module else original(name))
    assert main(["profile", "--model", "mbt_tiny", "--html", str(tmp_path / "x.html")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f'{module}; pip install "mbt-fast[bench]"' in captured.err


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r'pip install "mbt-fast\[bench\]"'):
        plots.svg(draw_lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00123456, "0.00123"),
        (0.9996, "1.00"),
        (9.996, "10.0"),
        (123456.7, "123457"),
        (-2.5, "-2.50"),
        (float("inf"), "inf"),
        (None, "-"),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert significant(value) == text
