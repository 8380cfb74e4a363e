"""Bars, axes, and charts as files of their own."""

import re
from xml.etree import ElementTree

import pytest

from mbt_fast.report.bars import Bar, bar_chart
from mbt_fast.report.page import table
from mbt_fast.report.standalone import standalone
from mbt_fast.report.svg import Point, Series, line_chart

HOSTILE = """</style><script>alert('1')</script>"&<b>"""


def texts(tree, tag):
    return ["".join(element.itertext()) for element in tree.iter(tag)]


class TestBars:
    def bars(self, *values):
        return [Bar(f"way {index}", value, f"{value:g} x") for index, value in enumerate(values)]

    def drawn(self, bars, **options):
        return ElementTree.fromstring(bar_chart(bars, title="T", x_label="x", **options))

    def ends(self, drawing):
        blocks = [p.get("d") for p in drawing.iter("path") if p.get("class") == "block"]
        return [float(re.search(r"H([\d.]+)v", d)[1]) for d in blocks]

    def test_lengths_are_proportional_from_zero(self):
        one, two, none = self.ends(self.drawn(self.bars(1.0, 2.0, 0.0)))
        assert two - none == pytest.approx(2 * (one - none), abs=0.2)

    def test_names_and_values_are_written_and_described(self):
        drawing = self.drawn(self.bars(1.5, 3.0))
        assert {"way 0", "1.5 x", "way 1", "3 x"} <= set(texts(drawing, "text"))
        assert drawing.find("desc").text == "x: way 0 1.5 x; way 1 3 x."

    def test_spread_fits_into_the_drawing(self):
        wide = self.drawn([Bar("wide", 1.0, "1", low=0.5, high=9.7)])
        (whisker,) = (p.get("d") for p in wide.iter("path") if p.get("class") == "whisker")
        width = float(wide.get("viewBox").split()[2])
        assert 0 <= max(float(x) for x in re.findall(r"[HM]([\d.]+)", whisker)) <= width

    def test_reference_stands_beside_every_bar(self):
        drawing = self.drawn(self.bars(1.0, 2.0), reference=1.0)
        assert sum(p.get("class") == "reference" for p in drawing.iter("path")) == 2

    def test_text_is_escaped(self):
        drawing = self.drawn([Bar(HOSTILE, 1.0, HOSTILE)])
        assert texts(drawing, "text").count(HOSTILE) == 2

    @pytest.mark.parametrize(
        ("bars", "message"),
        [
            ([], "bars must hold at least one bar, got none"),
            ([Bar("x", -1.0, "")], "bars must be finite and not negative"),
            ([Bar("x", float("nan"), "")], "bars must be finite and not negative"),
            ([Bar("x", 1.0, "", high=float("inf"))], "bars must be finite and not negative"),
        ],
    )
    def test_bad_input(self, bars, message):
        with pytest.raises(ValueError, match=message):
            bar_chart(bars, title="T", x_label="x")


class TestAxes:
    def chart(self, points, **options):
        series = [Series("a", tuple(Point(x, y) for x, y in points))]
        drawn = line_chart(series, title="T", x_label="x", y_label="y", **options)
        return ElementTree.fromstring(drawn)

    def x_of(self, drawing):
        marks = [p.get("transform") for p in drawing.iter("path") if p.get("transform")]
        return [float(re.search(r"\(([\d.]+) ", m)[1]) for m in marks]

    def test_equal_ratios_are_equal_distances(self):
        first, second, third, _legend = self.x_of(self.chart([(1, 1), (4, 1), (16, 1)], log_x=True))
        assert third - second == pytest.approx(second - first, abs=0.2)

    def test_zero_on_request(self):
        near = [(0, 90.0), (1, 100.0)]
        assert "axis starts at" in "".join(self.chart(near).itertext())
        assert "axis starts at" not in "".join(self.chart(near, from_zero=True).itertext())

    def test_note_stands_in_the_legend(self):
        series = [Series("a", (Point(0, 1), Point(1, 2)), note="1 to 2")]
        drawn = line_chart(series, title="T", x_label="x", y_label="y")
        assert "a 1 to 2" in texts(ElementTree.fromstring(drawn), "text")


class TestStandalone:
    def test_a_taller_card_keeps_the_drawing(self):
        svg = bar_chart([Bar("x", 1.0, "1")], title="T", x_label="x")
        low, high = (ElementTree.fromstring(standalone(svg, "C", h)) for h in (0, 500))
        assert int(high.get("height")) > int(low.get("height"))
        assert high.get("width") == low.get("width")

    def test_only_charts(self):
        with pytest.raises(ValueError, match="svg must be a chart of this package"):
            standalone("<svg/>", "C")


def test_a_row_of_one_cell_heads_its_group():
    tree = ElementTree.fromstring(table(["", "a"], [[["group\nsmall"], ["row", "1"]]], "T"))
    (head,) = (th for th in tree.iter("th") if th.get("colspan"))
    assert (head.get("colspan"), head.find("small").text) == ("2", "small")
