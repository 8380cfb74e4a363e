"""The report of ``mbt-fast profile``: numbers, text, and pages that hold together by themselves."""

import re
from decimal import Decimal
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from mbt_fast.report import format_table, ratio_to_vanilla, render_html
from mbt_fast.report.headlines import headlines
from mbt_fast.report.paper import FIGURE_3_GFLOPS, FIGURE_3_MAP, LATE_FUSION_LAYER
from mbt_fast.report.records import late_fusion_layer
from mbt_fast.report.svg import DASHES, MARKERS, N_STYLES, Point, Series, line_chart
from mbt_fast.report.table import amount, milliseconds, table_cells
from mbt_fast.report.ticks import nice_ticks, tick_text

LATE = 12
EARLY = {("bottleneck", False): 1.0, ("vanilla", False): 25.0, ("vanilla", True): 10.0}
HOSTILE = """</style><script>alert('1')</script>"&<b>"""
CONDITIONS = {"model": "mbt_base", "command": "mbt-fast profile", "date": "2026-01-01"}


def record(fusion="bottleneck", share_encoder=False, fusion_layer=0, **changes):
    """A record whose GFLOPs are 100 at late fusion and fall to it linearly from ``EARLY``."""
    extra = EARLY[fusion, share_encoder] * (1 - fusion_layer / LATE)
    wasted = 10 * extra if (fusion, share_encoder) == ("vanilla", False) else extra
    return {
        "fusion": fusion,
        "share_encoder": share_encoder,
        "fusion_layer": fusion_layer,
        "n_bottlenecks": 4,
        "batch_size": 8,
        "device": "cpu",
        "dtype": "float32",
        "backend": "auto",
        "mode": "forward",
        "gflops": 100 + extra,
        "gflops_attention": 20 + extra / 2,
        "gflops_linear": 78 + extra / 2,
        "gflops_official": 100 + wasted,
        "latency_ms_median": 200 + 2 * extra,
        "latency_ms_p20": 199 + 2 * extra,
        "latency_ms_p80": 203 + 2 * extra,
        "peak_memory_mb": 1000 + 4 * extra,
        "clips_per_second": 8000 / (200 + 2 * extra),
        **changes,
    }


def sweep(**changes):
    return [record(*variant, layer, **changes) for variant in EARLY for layer in (0, 4, 8, LATE)]


UNMEASURED = dict.fromkeys(
    ("latency_ms_median", "latency_ms_p20", "latency_ms_p80", "peak_memory_mb", "clips_per_second")
)


def page(records, **arguments):
    """The rendered page as an element tree, which it must be well-formed for."""
    return ElementTree.fromstring(render_html(records, CONDITIONS, **arguments))


def texts(tree, tag):
    return ["".join(element.itertext()) for element in tree.iter(tag)]


def charts(tree):
    """Caption to drawing."""
    return {f.find("figcaption").text: f.find("svg") for f in tree.iter("figure")}


class TestTicks:
    @pytest.mark.parametrize(
        ("low", "high", "expected"),
        [
            (0, 535.8, ["0", "200", "400", "600"]),
            (433.64, 535.8, ["425", "450", "475", "500", "525", "550"]),
            (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
            (0, 12345, ["0", "2,500", "5,000", "7,500", "10,000", "12,500"]),
            (0.0011, 0.0019, ["0.0010", "0.0012", "0.0014", "0.0016", "0.0018", "0.0020"]),
            (-3, 4, ["-4", "-2", "0", "2", "4"]),
        ],
    )
    def test_known_intervals(self, low, high, expected):
        assert [tick_text(tick) for tick in nice_ticks(low, high)] == expected

    @pytest.mark.parametrize("low", [-7.3, 0.0, 0.3, 98.2, 1e-7, 3e9])
    @pytest.mark.parametrize("length", [1e-3, 0.7, 1.0, 37.0, 4096.0])
    @pytest.mark.parametrize("count", [1, 3, 5, 10])
    def test_ticks_enclose_the_interval_in_equal_round_steps(self, low, length, count):
        high = low + length
        ticks = nice_ticks(low, high, count)
        steps = {after - before for before, after in pairwise(ticks)}
        assert len(steps) == 1
        step = steps.pop()
        assert Decimal(repr(low)) - step < ticks[0] <= Decimal(repr(low))
        assert Decimal(repr(high)) <= ticks[-1] < Decimal(repr(high)) + step
        assert step.normalize().as_tuple().digits in {(1,), (2,), (2, 5), (5,)}
        assert 1 < len(ticks) <= count + 2

    @pytest.mark.parametrize("value", [0, 8, -2.5])
    def test_one_value_gets_an_interval_around_it(self, value):
        ticks = nice_ticks(value, value)
        assert ticks[0] < value < ticks[-1]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((2, 1), "low must be at most high, got 2 and 1"),
            ((0, float("nan")), "low and high must be finite, got 0 and nan"),
            ((0, 1, 0), "count must be at least 1, got 0"),
        ],
    )
    def test_bad_input(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            nice_ticks(*arguments)


def chart(*series, **arguments):
    labels = {"title": "Latency", "x_label": "fusion layer", "y_label": "ms"}
    return ElementTree.fromstring(line_chart(series, **{**labels, **arguments}))


def positions(svg):
    """Markers of each series as drawn, without those of the legend."""
    groups = [g for g in svg.iter("g") if g.find("text") is None]
    pattern = re.compile(r"translate\(([\d.]+) ([\d.]+)\)")
    return [
        [tuple(map(float, pattern.match(p.get("transform")).groups())) for p in g.iter("path")
         if p.get("class") == "marker"]
        for g in reversed(groups)
    ]  # fmt: skip


class TestLineChart:
    LINE = Series("a", (Point(0, 300.0), Point(4, 200.0), Point(12, 100.0)))

    def test_is_named_and_described_for_screen_readers(self):
        svg = chart(self.LINE)
        assert svg.get("role") == "img"
        assert svg.get("aria-label") == svg.find("title").text == "Latency"
        assert svg.find("desc").text == (
            "ms against fusion layer: a goes from 300 at 0 to 100 at 12."
        )

    def test_points_lie_where_their_values_say(self):
        svg = chart(self.LINE)
        [((x0, y0), (x4, y4), (x12, y12))] = positions(svg)
        assert x4 - x0 == pytest.approx((x12 - x0) / 3, abs=0.1)  # coordinates have one decimal
        assert y4 - y0 == pytest.approx(y12 - y4, abs=0.1)
        assert y0 < y4 < y12

    def test_order_of_the_points_does_not_matter(self):
        shuffled = Series("a", self.LINE.points[::-1])
        assert positions(chart(shuffled)) == positions(chart(self.LINE))

    def test_axis_starts_at_zero_if_values_reach_the_lower_half(self):
        texts_drawn = texts(chart(self.LINE), "text")
        assert "0" in texts_drawn
        assert "ms" in texts_drawn

    def test_axis_above_zero_says_where_it_starts(self):
        svg = chart(Series("a", (Point(0, 535.8), Point(12, 433.6))))
        assert "ms (axis starts at 425)" in texts(svg, "text")

    def test_error_bars_are_inside_the_axis_and_around_the_point(self):
        svg = chart(Series("a", (Point(0, 10.0, 9.0, 13.0), Point(1, 10.0, 10.0, 10.0))))
        bars = [path.get("d") for path in svg.iter("path") if path.get("class") == "bar"]
        low, high = map(float, re.match(r"M[\d.]+ ([\d.]+)V([\d.]+)", bars[0]).groups())
        [[(_, y), _]] = positions(svg)
        assert len(bars) == 2
        assert high < y < low
        assert (y - high) == pytest.approx(3 * (low - y), abs=0.4)

    def test_series_differ_without_colour(self):
        series = [Series(str(i), (Point(0, i), Point(1, i)), style=i) for i in range(N_STYLES)]
        groups = [g for g in chart(*series).iter("g") if g.find("text") is not None]
        dashes = {g.find("path[@class='line']").get("stroke-dasharray") for g in groups}
        markers = {g.find("path[@class='marker']").get("d") for g in groups}
        assert len(dashes) == len(DASHES) == len(markers) == len(MARKERS) == N_STYLES
        assert [g.find("text").text for g in groups] == [line.name for line in series]

    def test_text_is_escaped(self):
        line = Series(HOSTILE, (Point(0, 1.0),))
        svg = chart(line, title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE, description=HOSTILE)
        assert svg.get("aria-label") == svg.find("title").text == svg.find("desc").text == HOSTILE
        assert texts(svg, "text").count(HOSTILE) == 3
        assert not list(svg.iter("script"))

    @pytest.mark.parametrize("values", [(0.0, 0.0), (5.0, 5.0), (-1.0, 3.0)])
    def test_flat_zero_and_negative_lines_are_drawn(self, values):
        svg = chart(Series("a", tuple(Point(x, y) for x, y in enumerate(values))))
        height = float(svg.get("viewBox").split()[3])
        assert all(0 < y < height for _, y in positions(svg)[0])

    def test_a_single_layer_is_drawn(self):
        [[(x, _)]] = positions(chart(Series("a", (Point(8, 1.0),))))
        assert x > 0

    def test_many_layers_do_not_crowd_the_axis(self):
        svg = chart(Series("a", tuple(Point(x, 1.0 + x) for x in range(49))))
        labels = [t.text for t in svg.iter("text") if t.get("text-anchor") == "middle"]
        assert labels == ["0", "10", "20", "30", "40", "50", "fusion layer"]

    @pytest.mark.parametrize(
        ("series", "message"),
        [
            ([], "series must hold at least one series, got none"),
            ([Series("a", ())], "series 'a' must hold at least one point, got none"),
            ([Series("a", (Point(0, float("nan")),))], "points of 'a' must be finite"),
            ([Series("a", (Point(0, 1.0, 0.0, float("inf")),))], "points of 'a' must be finite"),
        ],
    )
    def test_bad_input(self, series, message):
        with pytest.raises(ValueError, match=message):
            chart(*series)


class TestRatios:
    def test_against_pairwise_attention_at_the_same_layer(self):
        records = sweep()
        ratios = ratio_to_vanilla(records)
        assert len(ratios) == len(records)
        for entry, ratio in zip(records, ratios, strict=True):
            base = record("vanilla", False, entry["fusion_layer"])
            assert ratio.gflops == entry["gflops"] / base["gflops"]
            assert ratio.latency == entry["latency_ms_median"] / base["latency_ms_median"]
        assert ratios[0].gflops == 101 / 125
        assert ratios[0].latency == 202 / 250

    def test_all_variants_meet_at_late_fusion(self):
        late = [entry for entry in sweep() if entry["fusion_layer"] == LATE]
        assert set(ratio_to_vanilla(late)) == {(1.0, 1.0)}

    def test_no_baseline_no_ratio(self):
        records = [record(), record("vanilla", True), record("vanilla", False, 4)]
        assert ratio_to_vanilla(records) == [(None, None), (None, None), (1.0, 1.0)]

    def test_unmeasured_latency_leaves_the_flops(self):
        records = [record(**UNMEASURED), record("vanilla")]
        assert ratio_to_vanilla(records)[0] == (101 / 125, None)

    @pytest.mark.parametrize("key", ["mode", "batch_size", "device", "dtype"])
    def test_never_across_settings(self, key):
        records = [record(), record("vanilla", **{key: "other"})]
        assert ratio_to_vanilla(records)[0] == (None, None)

    def test_prefers_the_baseline_on_the_same_backend(self):
        slow = record("vanilla", backend="sdpa", latency_ms_median=404.0)
        fast = record("vanilla", backend="cuda", latency_ms_median=202.0)
        mine = record(backend="cuda")
        assert ratio_to_vanilla([slow, fast, mine])[2].latency == 1.0
        assert ratio_to_vanilla([slow, mine])[1].latency == 0.5

    def test_ambiguous_backends_give_no_latency_ratio(self):
        baselines = [record("vanilla", backend=backend) for backend in ("sdpa", "cuda")]
        assert ratio_to_vanilla([*baselines, record(backend="triton")])[2] == (101 / 125, None)


class TestTable:
    def test_has_the_numbers_of_a_record(self):
        table = table_cells([record(), record("vanilla")])
        row = dict(zip(table.headers, table.rows[0], strict=True))
        assert row == {
            "fusion": "bottleneck (B = 4)",
            "L_f": "0",
            "B": "4",
            "linear\nGFLOPs": "78.50",
            "attention\nGFLOPs": "20.50",
            "total\nGFLOPs": "101.00",
            "total\nratio": "0.808",
            "official\ncode": "-",
            "median ms\n[p20-p80]": "202 [201-205]",
            "time\nratio": "0.81",
            "peak\nMB": "1004",
            "clips/s": "39.60",
        }
        assert table.rows[1][table.headers.index("official\ncode")] == "350.00"

    def test_is_sorted_by_series_then_layer_whatever_the_order_of_the_records(self):
        records = sweep()
        assert table_cells(records[::-1]) == table_cells(records)
        names = list(dict.fromkeys(row[0] for row in table_cells(records).rows))
        assert names == ["bottleneck (B = 4)", "vanilla (own weights)", "vanilla (shared weights)"]

    def test_without_measurements_only_the_flops_are_left(self):
        headers = table_cells(sweep(**UNMEASURED)).headers
        assert headers[-1] == "official\ncode"

    def test_a_setting_that_varies_is_a_column(self):
        table = table_cells([record(batch_size=2), record(batch_size=16)])
        column = table.headers.index("batch")
        assert [row[column] for row in table.rows] == ["2", "16"]

    def test_text_names_what_all_records_share(self):
        pytest.importorskip("tabulate")
        first, *_, last = format_table(sweep()).splitlines()
        assert first == "forward, batch 8, cpu, float32, backend auto"
        assert last.startswith("Ratios are to vanilla")

    def test_text_has_a_line_per_record(self):
        pytest.importorskip("tabulate")
        lines = format_table(sweep()).splitlines()
        assert sum(line.startswith(("bottleneck", "vanilla")) for line in lines) == len(sweep())
        early = next(line for line in lines if line.startswith("vanilla (own"))
        cells = "0 - 90.50 32.50 125.00 1.000 250 [249-253] 1.00 1100 32.00"
        assert early.split()[3:] == cells.split()

    def test_flops_alone_need_no_device(self):
        pytest.importorskip("tabulate")
        nowhere = dict.fromkeys(("mode", "batch_size", "device", "dtype", "backend"))
        records = sweep(**UNMEASURED, **nowhere)
        assert format_table(records).startswith("fusion")
        assert "FLOPs of one clip" in charts(page(records))

    @pytest.mark.parametrize("function", [table_cells, lambda records: render_html(records, {})])
    def test_bad_records(self, function):
        with pytest.raises(ValueError, match="records must hold at least one record, got none"):
            function([])
        incomplete = record()
        del incomplete["gflops"]
        with pytest.raises(ValueError, match=r"records\[1\] must have gflops, got"):
            function([record(), incomplete])

    @pytest.mark.parametrize(
        ("value", "text"),
        [(2252.4, "2252"), (202.0, "202"), (12.34, "12.3"), (1.234, "1.23"), (0.05234, "0.0523")],
    )
    def test_milliseconds(self, value, text):
        assert milliseconds(value) == text

    @pytest.mark.parametrize(
        ("value", "text"),
        [(433.641, "433.64"), (0.0, "0.00"), (0.5, "0.500"), (0.00123, "0.00123")],
    )
    def test_small_amounts_keep_three_digits(self, value, text):
        assert amount(value) == text


class TestHeadlines:
    def test_state_costs_relative_to_late_fusion(self):
        assert headlines(sweep())[0] == (
            "Late fusion costs 100.00 GFLOPs per clip. Fusing from layer 0 on multiplies that "
            "by 1.010 for bottleneck (B = 4), by 1.250 for vanilla (own weights) and by 1.100 for "
            "vanilla (shared weights)."
        )

    def test_state_what_the_bottleneck_saves_at_the_first_and_at_the_papers_best_layer(self):
        saved_8 = 100 * (1 - (100 + 1 / 3) / (100 + 25 / 3))
        assert headlines(sweep())[1] == (
            "Against an efficient vanilla (own weights), bottleneck (B = 4) needs 19.2 % fewer "
            f"FLOPs at fusion layer 0 and {saved_8:.1f} % fewer FLOPs at fusion layer 8."
        )

    def test_state_the_waste_of_the_official_code(self):
        assert "spends 2.80 times the necessary FLOPs" in headlines(sweep())[2]
        assert not any("official" in line for line in headlines([record()]))

    def test_state_time_and_memory(self):
        assert headlines(sweep())[3] == (
            "Measured (forward, batch 8, cpu, float32) at fusion layer 0: bottleneck (B = 4) takes "
            "202 ms, 0.81 times the 250 ms of vanilla (own weights), at 0.91 times its peak memory."
        )

    @pytest.mark.parametrize(("p80", "noisy"), [(248.9, False), (249.0, True)])
    def test_admit_overlapping_intervals(self, p80, noisy):
        records = [record(latency_ms_p80=p80), record("vanilla")]
        assert ("may be noise" in headlines(records)[-1]) is noisy

    def test_without_late_fusion_state_absolute_costs(self):
        records = [record(fusion_layer=8), record("vanilla", fusion_layer=8)]
        assert headlines(records)[0] == (
            "At fusion layer 8, one clip costs 100.33 GFLOPs for bottleneck (B = 4) and "
            "108.33 GFLOPs for vanilla (own weights)."
        )

    def test_equal_costs_without_pairwise_attention_are_not_taken_for_late_fusion(self):
        other = {**record(fusion_layer=8), "share_encoder": True}
        assert late_fusion_layer([record(fusion_layer=8), other]) is None
        assert late_fusion_layer(sweep()) == LATE

    def test_without_measurements_only_flops_are_stated(self):
        assert len(headlines(sweep(**UNMEASURED))) == 3


class TestPage:
    def test_has_every_chart_once(self):
        assert list(charts(page(sweep()))) == [
            "FLOPs of one clip",
            "Latency",
            "Peak memory",
            "Throughput",
            "The paper",
            "This profile",
            "Accuracy in the paper",
        ]

    def test_charts_without_values_are_left_out(self):
        captions = charts(page(sweep(peak_memory_mb=None), paper=None))
        assert list(captions) == ["FLOPs of one clip", "Latency", "Throughput"]
        assert list(charts(page(sweep(**UNMEASURED), paper=None))) == ["FLOPs of one clip"]

    def test_a_single_missing_value_leaves_a_gap(self):
        records = sweep()
        records[1]["latency_ms_median"] = None
        drawn = positions(charts(page(records))["Latency"])
        assert [len(line) for line in drawn] == [3, 4, 4]

    def test_settings_have_charts_of_their_own(self):
        headings = texts(page([*sweep(), *sweep(mode="train")]), "h2")
        assert "Measured: forward, batch 8, cpu, float32" in headings
        assert "Measured: train, batch 8, cpu, float32" in headings

    def test_several_backends_are_lines_of_one_chart(self):
        tree = page([*sweep(backend="sdpa"), *sweep(backend="cpu")])
        legend = texts(charts(tree)["Latency"], "text")
        assert {"bottleneck (B = 4, sdpa)", "bottleneck (B = 4, cpu)"} <= set(legend)
        assert "bottleneck (B = 4)" in texts(charts(tree)["FLOPs of one clip"], "text")

    def test_own_flops_are_halved_beside_the_paper(self):
        drawing = charts(page(sweep()))["This profile"]
        assert len(positions(drawing)) == 4
        titles = texts(drawing, "title")
        assert "vanilla (own weights), 0: 62.5" in titles
        assert "vanilla (official code), 0: 175" in titles

    def test_states_the_four_conditions_of_figure_3(self):
        tree = page(sweep())
        [conditions] = list(tree.iter("ol"))
        stated = texts(conditions, "li")
        assert len(stated) == 4
        for index, words in enumerate(("784", "multiply-add", "5 bottleneck", "thrown away")):
            assert words in stated[index]

    def test_table_has_a_row_per_record_and_a_group_per_series(self):
        [table] = list(page(sweep()).iter("table"))
        assert len(list(table.iter("tbody"))) == 3
        assert len(list(table.iter("tr"))) == 1 + len(sweep())
        widths = {len(list(row)) for row in table.iter("tr")}
        assert len(widths) == 1

    def test_conditions_are_listed_in_order(self):
        definitions = list(page(sweep()).iter("dl"))[-1]
        listed = zip(texts(definitions, "dt"), texts(definitions, "dd"), strict=True)
        assert list(listed) == list(CONDITIONS.items())

    def test_needs_no_other_file_and_no_script(self):
        text = render_html(sweep(), CONDITIONS)
        assert not re.search(
            r"https?:|//|@import|url\(|<script|<link|\bsrc=|\bhref=|\bon\w+=", text
        )

    def test_serves_dark_mode_print_and_phones(self):
        text = render_html(sweep(), CONDITIONS)
        assert '<meta name="viewport" content="width=device-width, initial-scale=1"/>' in text
        assert "prefers-color-scheme: dark" in text
        assert "@media print" in text

    def test_lines_stand_out_from_the_page_in_light_and_dark(self):
        palettes = _palettes(render_html(sweep(), CONDITIONS))
        assert len(palettes) == 2
        for palette in palettes:
            page_colour = palette.pop("page")
            series = [palette[f"series-{index + 1}"] for index in range(N_STYLES)]
            for colour in series:
                assert _contrast(colour, page_colour) >= 3  # WCAG 2.1, criterion 1.4.11
            for name in ("text", "muted"):
                assert _contrast(palette[name], page_colour) >= 4.5  # criterion 1.4.3

    def test_hostile_text_stays_text(self):
        records = sweep(device=HOSTILE, dtype=HOSTILE, mode=HOSTILE)
        records[0]["dtype"] = "float32"
        conditions = {HOSTILE: HOSTILE, "command": HOSTILE}
        text = render_html(records, conditions)
        tree = ElementTree.fromstring(text)
        assert not list(tree.iter("script"))
        assert not list(tree.iter("b"))
        assert texts(tree, "dd")[-2:] == [HOSTILE, HOSTILE]
        assert HOSTILE in texts(tree, "td")
        assert "script" not in _tags(text)

    def test_html_parsers_see_the_same_elements_as_xml_parsers(self):
        text = render_html(sweep(), CONDITIONS)
        assert _tags(text) == [element.tag for element in ElementTree.fromstring(text).iter()]

    def test_is_deterministic(self):
        assert render_html(sweep(), CONDITIONS) == render_html(sweep(), dict(CONDITIONS))
        assert render_html(sweep()[::-1], CONDITIONS) == render_html(sweep(), CONDITIONS)

    def test_leaves_its_input_alone(self):
        records = sweep()
        render_html(records, CONDITIONS)
        assert records == sweep()


def _palettes(text):
    """The custom colours of the page, light and dark, by name."""
    blocks = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#\w+);", block)) for block in blocks]


def _luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(one, other):
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _tags(text):
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, _: found.append(tag)
    parser.feed(text)
    return found


class TestPaper:
    def test_both_panels_cover_the_same_layers(self):
        layers = list(range(0, LATE_FUSION_LAYER + 1, 2))
        for panel in (FIGURE_3_MAP, FIGURE_3_GFLOPS):
            assert {fusion: list(values) for fusion, values in panel.items()} == {
                "bottleneck": layers,
                "vanilla": layers,
            }

    def test_costs_fall_linearly_and_meet_at_late_fusion(self):
        for values in FIGURE_3_GFLOPS.values():
            first, late = values[0], values[LATE_FUSION_LAYER]
            for layer, value in values.items():
                expected = late + (first - late) * (1 - layer / LATE_FUSION_LAYER)
                assert value == pytest.approx(expected, abs=0.02)  # each end is known to 0.01
        assert FIGURE_3_GFLOPS["bottleneck"][12] == FIGURE_3_GFLOPS["vanilla"][12]

    def test_bottlenecks_are_more_accurate_up_to_layer_8(self):
        ahead = [
            layer
            for layer, value in FIGURE_3_MAP["bottleneck"].items()
            if value.mean > FIGURE_3_MAP["vanilla"][layer].mean
        ]
        assert ahead == [0, 2, 4, 6, 8, 12]
