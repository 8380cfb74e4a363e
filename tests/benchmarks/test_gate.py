"""No speed-up without green tests of the same sources."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_record import BASE, OURS, document

from benchmarks import gate, record, regression, run
from benchmarks.compare import compare, earlier, is_sure
from benchmarks.environment import stamp, tree_hash
from benchmarks.fit import fit_power
from benchmarks.gate import Gate, NotGreen, Outcome
from benchmarks.record import Spread

COMMIT, TREE = "a" * 40, "tree"
ENVIRONMENT = dict.fromkeys(record.ENVIRONMENT, "known") | {"commit": COMMIT, "tree": TREE}
GREEN = Gate(tests=["tests/test_mbt.py"], passed=3, failed=0, commit=COMMIT, tree=TREE)


def test_a_green_document_may_be_reported(tmp_path):
    whole = document(BASE, OURS, gate=GREEN, environment=ENVIRONMENT)
    record.save(whole, tmp_path / "layer.json")
    assert gate.load_green(tmp_path / "layer.json") == whole


REFUSED = {
    "no gate": (None, {}, "were not run"),
    "a failure": (replace(GREEN, failed=1), {}, "3 passed and 1 failed"),
    "nothing run": (replace(GREEN, passed=0), {}, "0 passed"),
    "another commit": (replace(GREEN, commit="b" * 40), {}, "another commit"),
    "other sources": (replace(GREEN, tree="other"), {}, "another commit"),
    "changed sources": (
        replace(GREEN, commit=f"{COMMIT}-dirty"),
        {"commit": f"{COMMIT}-dirty"},
        "no commit",
    ),
    "no checkout": (replace(GREEN, commit=None), {"commit": None}, "no commit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_document_is_refused(name, tmp_path):
    made, changes, message = REFUSED[name]
    record.save(
        document(BASE, gate=made, environment=ENVIRONMENT | changes), tmp_path / "layer.json"
    )
    with pytest.raises(NotGreen, match=f"layer.json must not be reported: .*{message}"):
        gate.load_green(tmp_path / "layer.json")


PASS, FAIL, SKIP = (
    "<testcase {}/>",
    "<testcase {}><failure/></testcase>",
    "<testcase {}><skipped/></testcase>",
)


def report(path, *cases, name=None):
    text = "".join(cases)
    path.write_text(
        f'<testsuites><testsuite name="{name or tree_hash()}">{text}</testsuite></testsuites>'
    )
    return path


def test_reports_of_pytest_are_read_by_file(tmp_path):
    first = report(
        tmp_path / "1.xml",
        PASS.format('classname="tests.test_mbt" name="a"'),
        FAIL.format('classname="tests.test_mbt.TestX" name="b"'),
        SKIP.format('classname="tests.test_mbt" name="c"'),
        '<testcase classname="" name="tests.test_flops"><error/></testcase>',
    )
    second = report(tmp_path / "2.xml", PASS.format('classname="tests.test_mbt" name="d"'))
    outcomes = gate.read_reports([first, second])
    assert outcomes == {"tests/test_mbt.py": Outcome(2, 1), "tests/test_flops.py": Outcome(0, 1)}
    found = gate.gate_of(["tests/test_mbt.py"], outcomes, COMMIT, TREE)
    assert (found.passed, found.failed) == (2, 1)
    assert gate.gate_of(["tests/test_mbt.py", "tests/test_x.py"], outcomes, COMMIT, TREE) is None


def test_nothing_counts_where_a_report_is_missing(tmp_path):
    first = report(tmp_path / "1.xml", PASS.format('classname="tests.test_mbt" name="a"'))
    assert gate.read_reports([first, tmp_path / "2.xml"]) == {}


def test_a_report_of_other_sources_is_refused(tmp_path):
    with pytest.raises(NotGreen, match="of the present sources"):
        gate.read_reports([report(tmp_path / "1.xml", name="other")])


def test_guards_are_run_and_read(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_a(): pass\ndef test_b(): assert 0\n")
    monkeypatch.setattr(gate, "ROOT", tmp_path)
    assert gate.run_guards(["tests/test_a.py"]) == {"tests/test_a.py": Outcome(1, 1)}


def test_the_stamp_names_what_was_run():
    found = stamp()
    assert set(record.ENVIRONMENT) <= set(found)
    assert len(found["tree"]) == 64


RECORDS = sorted(regression.RESULTS.glob("*/*.json"))
# Formats of their own: mbt-fast profile, by_depth, compile_ahead, tolerance.
OTHERS = ("profile", "by_depth", "triton")


@pytest.mark.parametrize(
    "path",
    [p for p in RECORDS if p.stem not in OTHERS and not p.stem.startswith("tolerance")],
    ids=lambda path: path.stem,
)
def test_committed_documents_may_be_reported(path):
    assert gate.load_green(path).records


def test_comparison_shows_ratios_and_what_is_counted(tmp_path):
    slower = replace(OURS, ratio=Spread(1.5, 1.4, 1.6), ms=Spread(9.0, 9.0, 9.0), flops=2000)
    (ratio, flops) = compare(document(BASE, slower), document(BASE, OURS))
    assert (ratio.what, ratio.before, ratio.now) == ("ratio", 2.0, 1.5)
    assert (flops.what, flops.share) == ("flops", 1.0)
    assert ratio.line().startswith("! layer")
    assert ratio.line(noise=0.5).startswith("  layer")
    within = replace(OURS, ratio=Spread(2.05, 2.0, 2.1))
    (change,) = compare(document(BASE, within), document(BASE, OURS))
    assert change.line().startswith("  layer")
    record.save(document(BASE), tmp_path / "layer.json")
    assert earlier(tmp_path, "layer") == earlier(tmp_path / "layer.json", "layer") == document(BASE)
    assert earlier(tmp_path, "model") is None


def test_comparison_is_of_what_both_runs_have():
    quiet = replace(OURS, ratio=Spread(2.0, 1.9, 2.1, 1.5))
    (mixed,) = compare(document(BASE, quiet), document(BASE, OURS))
    assert (mixed.before, mixed.now) == (2.0, 2.0)
    slower = replace(OURS, ratio=Spread(2.0, 1.9, 2.1, 1.2))
    (both,) = compare(document(BASE, slower), document(BASE, quiet))
    assert (both.before, both.now) == (1.5, 1.2)


def test_few_rounds_are_not_sure_of_a_quiet_ratio():
    known = replace(OURS, uncertainty=0.001, ratio=Spread(2.0, 1.9, 2.1, 1.9))
    few, many = (replace(known, rounds=rounds) for rounds in (24, 25))
    assert [is_sure(one) for one in (few, many, OURS)] == [False, True, False]
    assert not is_sure(replace(many, uncertainty=0.02))


def test_fit_of_a_power_law():
    fit = fit_power([1, 2, 4], [3, 12, 48], case="c", variant="v", quantity="q", against="x")
    assert fit.exponent == pytest.approx(2)
    assert fit.residual == pytest.approx(0, abs=1e-12)
    assert fit.points == 3


def test_regression_warns_and_names_the_record(tmp_path):
    record.save(document(BASE, OURS), tmp_path / "layer.json")
    (line, verdict) = regression.report([BASE, OURS], tmp_path)
    assert "+0.0%" in line
    assert verdict == f"no ratio is more than 20% from {tmp_path.name}"
    broken = replace(OURS, ms=None, ratio=None, rounds=0, error="no kernel")
    (*_, line, verdict) = regression.report([BASE, broken], tmp_path)
    assert "no kernel" in line
    assert verdict.startswith("warning: 1 figures")


def test_regression_selects_what_is_recorded():
    folder = regression.recorded("a device that nobody has")
    for selected in regression.SELECTED:
        known = earlier(folder, selected.entry)
        values = {"case": selected.case, "mode": selected.mode, "dtype": "bfloat16"}
        for variant in selected.variants:
            assert known.select(variant=variant, **values)


def test_a_run_writes_documents_that_nobody_may_report_without_tests(tmp_path, monkeypatch, capsys):
    arguments = ["run", "--smoke", "--only", "host_cost", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    assert run.main() == 0
    assert "host_cost must not be reported" in capsys.readouterr().out
    written = json.loads((tmp_path / "host_cost.json").read_text())
    assert written["command"] == "python -m benchmarks.run " + " ".join(arguments[1:])
    with pytest.raises(NotGreen):
        gate.load_green(Path(tmp_path / "host_cost.json"))
