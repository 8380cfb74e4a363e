"""python -m benchmarks.report: a page and blocks from records; nothing that the gate refuses."""

import json
import re
import shutil
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from benchmarks import registry
from benchmarks.compare import NOISE, compare
from benchmarks.gate import NotGreen
from benchmarks.record import Ceilings, Document, Fit, Gate, Record, Spread, save
from benchmarks.report import html, readme
from benchmarks.report.__main__ import main
from benchmarks.report.evidence import ratios_apart
from benchmarks.report.results import AGAIN, CPUS, FOLDER, ROOT, read, spread_text

COMMIT, TREE = "a1b2c3d4e5" * 4, "t" * 64
ANCHORS = [
    "what",
    "fusion",
    "figure3",
    "sweeps",
    "attention",
    "layer",
    "model",
    "parts",
    "layer_ops",
    "savings",
    "repeated",
    "tolerance",
    "ahead",
]
HOSTILE = """<script>alert("1")</script>&"""


def record(entry, variant="ours", **changes):
    values = {
        "entry": entry,
        "case": "some case",
        "variant": variant,
        "baseline": "stock",
        "mode": "forward",
        "shape": {"model": "mbt_base", "batch": 1, "tokens": [1569, 401], "fusion_layer": 8},
        "dtype": "bfloat16",
        "device": "cpu",
        "threads": 2,
        "clock": "perf_counter",
        "rounds": 7,
        "ms": Spread(12.5, 12.0, 13.0),
        "ratio": Spread(1.75, 1.5, 2.0),
    }
    return Record(**{**values, **changes})


def pair(entry, **changes):
    stock = {"ratio": Spread(1.0, 1.0, 1.0), "ms": Spread(21.9, 21.0, 23.0)}
    return [record(entry, **changes), record(entry, "stock", **{**changes, **stock})]


def sweep(axis="batch"):
    records = []
    for batch in (1, 2, 4):
        shape = {"model": "mbt_base", "batch": batch, "tokens": [1569, 401], "fusion_layer": 8}
        for way, cost in (("ours", 100), ("vanilla official", 220)):
            counted = {"flops": cost * batch * 10**9, "ms": None, "ratio": None, "rounds": 0}
            counted |= {"clock": None, "baseline": None}
            records.append(record("sweeps", way, case=f"{axis}, counted", shape=shape, **counted))
            times = {"ms": Spread(*(cost * batch * k for k in (1.0, 0.9, 1.1))), "ratio": None}
            records.append(record("sweeps", way, case=axis, shape=shape, baseline=None, **times))
    return records


def document(entry, records=None, **changes):
    gate = Gate(tests=["tests/test_x.py"], passed=41, failed=0, commit=COMMIT, tree=TREE)
    values = {
        "environment": {
            "device": "A CPU",
            "python": "3.11",
            "torch": "2.13",
            "mbt_fast": "0.1.0",
            "commit": COMMIT,
            "tree": TREE,
            "sources": {},
            "date": "2026-01-02 03:04 UTC",
        },
        "command": "python -m benchmarks.run",
        "conditions": {
            "threads": 2,
            "instruction_set": "avx2",
            "allocator": "glibc",
            "load_average": [0.1, 1.0],
        },
        "ceilings": Ceilings(matmul_gflops={"bfloat16": 900.0}, copy_gb_per_s=30.0),
        "gate": gate,
        "records": pair(entry) if records is None else records,
    }
    return Document(**{**values, **changes})


def fits():
    names = {"case": "batch", "against": "batch", "residual": 0.12, "points": 3}
    return [Fit(variant=way, quantity="ms", exponent=1.25, **names) for way in ("ours",)]


@pytest.fixture
def folder(tmp_path):
    """Every entry, a profile and a count of tolerance."""
    for entry in registry.ENTRIES:
        if entry.name == "sweeps":
            found = document("sweeps", sweep(), fits=fits())
        elif entry.name == "parts":
            bare = {"baseline": None, "ratio": None, "share_of_matmul": 0.875}
            found = document("parts", [record("parts", "qkv", **bare)])
        else:
            found = document(entry.name)
        save(found, tmp_path / f"{entry.name}.json")
    shutil.copy(FOLDER / "profile.json", tmp_path)
    shutil.copy(FOLDER / "tolerance_cpu_float32.json", tmp_path)
    return tmp_path


def rendered(folder):
    return html.render(read(folder))


def section(page, anchor):
    (found,) = (s for s in ElementTree.fromstring(page).iter("section") if s.get("id") == anchor)
    return " ".join(" ".join(found.itertext()).split())


class TestPage:
    def test_all_sections_in_order_under_one_heading(self, folder):
        tree = ElementTree.fromstring(rendered(folder))
        assert len(list(tree.iter("h1"))) == 1
        assert [s.get("id") for s in tree.iter("section")] == ANCHORS

    def test_contents_lead_to_every_section(self, folder):
        tree = ElementTree.fromstring(rendered(folder))
        links = [a.get("href") for a in tree.find(".//nav").iter("a")]
        assert links == [f"#{anchor}" for anchor in ANCHORS]

    def test_needs_nothing_from_outside(self, folder):
        page = rendered(folder)
        assert not re.search(r"https?:|url\(|@import|<script|<link|<img|<iframe|src=", page)
        assert set(re.findall(r'href="(.)', page)) == {"#"}

    def test_light_dark_print_and_phone(self, folder):
        page = rendered(folder)
        for words in (
            'name="color-scheme" content="light dark"',
            "prefers-color-scheme: dark",
            "@media print",
            "@media (max-width: 34rem)",
            'name="viewport" content="width=device-width',
        ):
            assert words in page

    def test_every_drawing_has_a_title_and_a_description(self, folder):
        drawings = list(ElementTree.fromstring(rendered(folder)).iter("svg"))
        assert len(drawings) >= 12
        for drawing in drawings:
            assert drawing.find("title").text == drawing.get("aria-label")
            assert len(drawing.find("desc").text) > 20

    def test_every_table_scrolls_in_its_own_box(self, folder):
        tree = ElementTree.fromstring(rendered(folder))
        boxes = [div for div in tree.iter("div") if div.get("class") == "scroll"]
        assert len(boxes) == len(list(tree.iter("table")))
        assert all(box.get("tabindex") == "0" and box.get("aria-label") for box in boxes)

    @pytest.mark.parametrize(
        "name", ["attention", "layer", "model", "savings", "layer_ops", "parts", "sweeps"]
    )
    def test_numbers_have_their_record_and_commit(self, folder, name):
        said = section(rendered(folder), name)
        assert f"Record: {name}.json, commit {COMMIT[:10]}, 2026-01-02 03:04 UTC" in said
        assert "A CPU, 2 CPU threads, avx2, torch 2.13" in said

    def test_equal_records_give_equal_pages(self, folder):
        assert rendered(folder) == rendered(folder)

    def test_text_of_records_is_escaped(self, folder):
        failed = {"ms": None, "ratio": None, "rounds": 0, "clock": None, "error": HOSTILE}
        records = [*pair("layer"), record("layer", HOSTILE, **failed)]
        save(document("layer", records, notes=[HOSTILE]), folder / "layer.json")
        page = rendered(folder)
        assert "<script" not in page
        assert section(page, "layer").count("alert") == 3


class TestComparisons:
    def test_ratio_spread_and_baseline(self, folder):
        said = section(rendered(folder), "layer")
        assert "1.75 [1.50-2.00]" in said
        assert "12.5 [12.0-13.0]" in said
        assert "stock (baseline)" in said
        assert "MBT-B, batch 1, 1569 + 401 tokens, bfloat16, 2 threads" in said

    def test_what_was_not_measured_says_why(self, folder):
        failed = {"ms": None, "ratio": None, "rounds": 0, "clock": None}
        records = [*pair("layer"), record("layer", "xformers", error="not installed", **failed)]
        save(document("layer", records), folder / "layer.json")
        assert "xformers not installed" in section(rendered(folder), "layer")

    def test_spread_that_was_not_recorded_is_left_out(self):
        assert spread_text(Spread(1.234)) == "1.23"
        assert spread_text(Spread(1.234, 1.0, 1.5)) == "1.23 [1.00-1.50]"

    def test_quiet_ratios_stand_with_their_standard_error(self, folder):
        times = {"ms": Spread(12.5, 12.0, 13.0, 11.5), "ratio": Spread(1.75, 1.5, 2.0, 1.6)}
        records = [record("layer", uncertainty=0.01, **times), record("layer", "stock")]
        save(document("layer", records), folder / "layer.json")
        said = section(rendered(folder), "layer")
        assert "1.60 \N{PLUS-MINUS SIGN} 1.0%" in said
        assert "11.5 [12.0-13.0]" in said
        assert "whiskers of two standard errors" in said
        assert "quickest fifths of the rounds" in said

    def test_peers_are_explained(self, folder):
        save(document("layer", [*pair("layer"), record("layer", "eager")]), folder / "layer.json")
        assert registry.PEERS["eager"] in section(rendered(folder), "layer")

    def test_pairs_are_one_row_with_both_names(self, folder):
        said = section(rendered(folder), "layer_ops")
        assert "21.9 [21.0-23.0] stock 12.5 [12.0-13.0] ours 1.75 [1.50-2.00] 7 rounds" in said

    def test_drop_rates_share_one_chart(self, folder):
        records = [
            one
            for rate in (0.0, 0.5)
            for one in pair("savings", case="depth", shape={"stochastic_depth": rate})
        ]
        save(document("savings", records), folder / "savings.json")
        said = section(rendered(folder), "savings")
        assert said.count("A step under stochastic depth") >= 1
        assert "drop rate 0 1.75 [1.50-2.00]; drop rate 0.5 1.75 [1.50-2.00]." in said

    def test_what_is_kept_is_drawn(self, folder):
        bare = {"ms": None, "ratio": None, "rounds": 0, "clock": None, "baseline": None}
        records = [
            record("savings", name, case="kept", saved_memory=size * 2**20, **bare)
            for name, size in (("eager", 40), ("ours, memory minimal", 16))
        ]
        save(document("savings", records), folder / "savings.json")
        said = section(rendered(folder), "savings")
        assert "MiB: eager 40.0 MiB; ours, memory minimal 16.0 MiB." in said

    def test_parts_stand_beside_their_ceiling(self, folder):
        assert "12.5 ms, 88%" in section(rendered(folder), "parts")


class TestEvidence:
    def test_machine_and_ceilings(self, folder):
        said = section(rendered(folder), "what")
        assert "A CPU" in said
        assert "900 GFLOP/s" in said
        assert "41 passed" in said

    def test_tolerance_counts_have_their_file(self, folder):
        counted = json.loads((folder / "tolerance_cpu_float32.json").read_text())
        said = section(rendered(folder), "tolerance")
        assert "tolerance_cpu_float32.json" in said
        assert str(counted["calls"]) in said

    def test_registers_of_every_kernel(self, folder):
        said = section(rendered(folder), "ahead")
        kernels = read(folder).ahead["kernels"]
        assert all(name in said for name in kernels)
        assert "no speeds" in said


class TestRepeated:
    def test_a_second_run_is_compared_ratio_by_ratio(self, folder):
        sure, unsure = {"uncertainty": 0.01}, {"uncertainty": 0.03, "mode": "step"}
        first = [*pair("layer", **sure), *pair("layer", **unsure)]
        close = pair("layer", ratio=Spread(1.82, 1.5, 2.0), **sure)
        far = pair("layer", ratio=Spread(1.40, 1.3, 1.5), **unsure)
        save(document("layer", first), folder / "layer.json")
        save(document("layer", [*close, *far]), folder / AGAIN / "layer.json")
        said = section(rendered(folder), "repeated")
        assert "again/layer.json 2026-01-02 03:04 UTC 2 1 1 1 4.0%" in said

    def test_without_one_it_says_so(self, folder):
        assert "There is no second run here." in section(rendered(folder), "repeated")

    def test_what_the_gate_refuses_is_not_compared(self, folder):
        save(document("layer", gate=None), folder / AGAIN / "layer.json")
        assert "There is no second run here." in section(rendered(folder), "repeated")


class TestFusion:
    def test_figure_3_is_reproduced_and_its_waste_named(self, folder):
        said = section(rendered(folder), "figure3")
        for number in ("205.48", "204.37", "116.67", "98.39", "97.92"):
            assert number in said
        assert "vanilla attention 2.11 times late fusion" in said
        assert "throws the rows of the others away" in said
        assert "vanilla fusion costs 1.20 times late fusion" in said
        assert "784 RGB patches" in said

    def test_profile_has_official_flops_and_its_conditions(self, folder):
        said = section(rendered(folder), "fusion")
        assert "vanilla (official code) 957.7 to 433.6" in said
        assert "Record: profile.json" in said

    def test_sweeps_are_drawn_and_fitted(self, folder):
        said = section(rendered(folder), "sweeps")
        assert "Against clips in a batch" in said
        assert "1.25 rms 0.12, 3 points" in said
        assert "Against fusion layer" not in said  # one point is no line

    def test_two_points_are_no_fit(self, folder):
        two = [replace(fit, points=2) for fit in fits()]
        save(document("sweeps", sweep(), fits=two), folder / "sweeps.json")
        assert "Exponents" not in section(rendered(folder), "sweeps")


class TestRefusal:
    def refuse(self, folder, **changes):
        red = document("layer")
        red = replace(red, **{k: v for k, v in changes.items() if k != "commit"})
        save(red, folder / "layer.json")
        return section(rendered(folder), "layer")

    def test_red_tests(self, folder):
        gate = Gate(tests=["tests/test_x.py"], passed=40, failed=1, commit=COMMIT, tree=TREE)
        said = self.refuse(folder, gate=gate)
        assert "Not shown: of the tests that guard it 40 passed and 1 failed" in said
        assert "1.75" not in said

    def test_no_tests(self, folder):
        said = self.refuse(folder, gate=None)
        assert "Not shown: the tests that guard it were not run" in said
        assert "python -m benchmarks.run --only layer" in said
        assert "1.75" not in said

    def test_readme_is_not_written_from_it(self, folder):
        self.refuse(folder, gate=None)
        with pytest.raises(NotGreen, match=r"layer\.json: Not shown: the tests that guard it"):
            readme.blocks(read(folder))

    def test_no_record_says_how_to_get_it(self, folder):
        for name in ("layer", "sweeps", "parts"):
            (folder / f"{name}.json").unlink()
            said = section(rendered(folder), name)
            assert f"Not recorded here yet: python -m benchmarks.run --only {name}" in said

    def test_no_profile(self, folder):
        (folder / "profile.json").unlink()
        assert "mbt-fast profile --json profile.json" in section(rendered(folder), "fusion")
        with pytest.raises(ValueError, match=r"results must hold profile\.json"):
            readme.plots(read(folder))

    def test_no_folder(self, tmp_path):
        with pytest.raises(NotADirectoryError, match="results must be a folder"):
            read(tmp_path / "nowhere")


class TestCommand:
    def test_page(self, folder, monkeypatch):
        page = folder / "report.html"
        arguments = ["report", "--results", str(folder), "--html", str(page)]
        monkeypatch.setattr("sys.argv", arguments)
        main()
        assert page.read_text() == rendered(folder)

    def test_blocks_are_printed(self, monkeypatch, capsys):
        monkeypatch.setattr("sys.argv", ["report"])
        main()
        out = capsys.readouterr().out
        assert all(block in out for block in readme.blocks(read(FOLDER)).values())

    def test_readme_is_replaced_between_its_markers(self, tmp_path, monkeypatch):
        monkeypatch.setattr(readme, "plots", lambda results: {})  # they belong to the records
        copy = tmp_path / "README.md"
        text = readme.README.read_text()
        begin, end = readme.markers("cpu")
        head, tail = text.split(begin)[0], text.split(end)[1]
        copy.write_text(f"{head}{begin}stale\n{end}{tail}")
        readme.write(read(FOLDER), copy)
        assert copy.read_text() == text

    def test_readme_without_markers_is_refused(self, tmp_path):
        copy = tmp_path / "README.md"
        copy.write_text("nothing here\n")
        with pytest.raises(ValueError, match=r"README\.md must have the markers of plots"):
            readme.write(read(FOLDER), copy)


def test_plots_of_the_readme_stand_for_themselves(folder):
    plots = readme.plots(read(folder))
    assert {path.name for path in plots} == {"flops.svg", "latency.svg"}
    heights = set()
    for svg in plots.values():
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme: dark" in svg
        assert 'class="card"' in svg
        assert not re.search(r"https?:(?!//www.w3.org/2000/svg)|url\(|@import|<script", svg)
        heights.add(root.get("height"))
    assert len(heights) == 1  # they stand side by side


def test_profile_records_of_the_project_are_json_of_the_command():
    conditions = json.loads((FOLDER / "profile.json").read_text())[0]["conditions"]
    assert conditions["command"].startswith("mbt-fast profile")


# The share of what both runs are sure of that lies within NOISE. On Zen 5 ratios are medians of the
# rounds, and their standard errors do not know what outlasts a pass.
AGREE = {"Zen 5": 19 / 20, "Zen 4": 1}


@pytest.mark.parametrize("cpu", CPUS)
def test_two_runs_agree_where_both_are_sure(cpu):
    results = read(CPUS[cpu])
    assert set(results.again) == {path.stem for path in (CPUS[cpu] / AGAIN).glob("*.json")}
    changes = [change for name in results.again for change in ratios_apart(results, name)]
    sure = [change for change in changes if change.sure]
    assert len(sure) > len(changes) / 5
    assert sum(not change.beyond(NOISE) for change in sure) >= AGREE[cpu] * len(sure)
    assert [change.line() for change in sure if change.beyond(2 * NOISE)] == []


def test_what_is_said_of_two_runs_is_what_they_show():
    """Ratios of quiet times repeat better than medians over the same rounds."""
    results = read(CPUS["Zen 4"])
    changes = [change for name in results.again for change in ratios_apart(results, name)]
    medians = [
        change
        for name, again in results.again.items()
        for change in compare(*map(without_quiet, (again, results.documents[name])))
        if change.what == "ratio"
    ]
    both = (changes, medians)
    near, near_by_medians = (sum(not change.beyond(NOISE) for change in found) for found in both)
    far, far_by_medians = (
        f"{100 * max(abs(change.share) for change in found):.0f} %" for found in both
    )
    prose = " ".join((ROOT / "benchmarks" / "README.md").read_text().split())
    assert (
        f"{near} of {len(changes)} ratios of `attention` and `layer_ops` lie within 5 %, by "
        f"medians of the same rounds {near_by_medians}; the farthest is {far} off, by medians "
        f"{far_by_medians}. Of the {sum(change.sure for change in changes)} that both runs are sure"
    ) in prose


def without_quiet(document):
    """As records of before had it."""
    records = [replace(r, ratio=r.ratio and r.ratio._replace(quiet=None)) for r in document.records]
    return replace(document, records=records)
