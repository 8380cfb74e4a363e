"""The format of records: what is written is read again, and what is wrong is refused."""

import json
from dataclasses import replace

import pytest

from benchmarks import record
from benchmarks.record import Ceilings, Document, Fit, Gate, Record, Spread

BASE = Record(
    entry="layer",
    case="fusion layer",
    variant="eager",
    mode="forward",
    shape={"batch": 1, "rows": [9, 5]},
    dtype="float32",
    device="cpu",
    baseline="eager",
    threads=2,
    clock="perf_counter",
    rounds=5,
    ms=Spread(2.0, 1.9, 2.1),
    ratio=Spread(1.0, 1.0, 1.0),
    flops=1000,
)
OURS = replace(BASE, variant="ours", ms=Spread(1.0, 0.9, 1.1), ratio=Spread(2.0, 1.9, 2.1))


def document(*records, **values):
    values = {
        "environment": dict.fromkeys(record.ENVIRONMENT, "known"),
        "command": "python -m benchmarks.run",
        "conditions": dict.fromkeys(record.CONDITIONS, 1),
        "ceilings": Ceilings(matmul_gflops={"float32": 100.0}, copy_gb_per_s=10.0),
        **values,
    }
    return Document(records=list(records), **values)


def test_what_is_saved_is_loaded(tmp_path):
    gate = Gate(tests=["tests/test_mbt.py"], passed=3, failed=0, commit="abc", tree="def")
    fit = Fit(
        case="span", variant="ours", quantity="flops", against="tokens", exponent=1.2,
        residual=0.01, points=5,
    )  # fmt: skip
    failed = replace(BASE, variant="flex_attention", ms=None, ratio=None, rounds=0, error="no")
    quiet = replace(
        OURS, variant="quiet", ms=Spread(1.0, 0.9, 1.1, 0.8), ratio=Spread(2.0, quiet=1.9)
    )
    whole = document(BASE, OURS, quiet, failed, gate=gate, fits=[fit], notes=["a note"])
    record.save(whole, tmp_path / "sub" / "layer.json")
    assert record.load(tmp_path / "sub" / "layer.json") == whole


def test_every_record_has_a_line_of_its_own(tmp_path):
    record.save(document(BASE, OURS), tmp_path / "layer.json")
    lines = (tmp_path / "layer.json").read_text().splitlines()
    assert sum('"variant"' in line for line in lines) == 2


def test_records_are_found_by_attribute_and_by_shape():
    whole = document(BASE, OURS)
    assert whole.find(variant="ours", batch=1) == OURS
    assert whole.select(mode="forward", batch=2) == []
    with pytest.raises(LookupError, match="got 2"):
        whole.find(mode="forward")


WRONG = {
    "mode": ({"mode": "training"}, ValueError, "mode must be one of"),
    "clock": ({"clock": "sundial"}, ValueError, "clock must be one of"),
    "type of flops": ({"flops": 1.5}, TypeError, "flops must be"),
    "type of shape": ({"shape": [1]}, TypeError, "shape must be"),
    "quantiles out of order": ({"ms": Spread(2.0, 2.1, 1.9)}, ValueError, "in order"),
    "no time at all": ({"ms": Spread(0.0, 0.0, 0.0)}, ValueError, "positive"),
    "no quiet time": ({"ms": Spread(2.0, 1.9, 2.1, 0.0)}, ValueError, "positive"),
    "times of no rounds": ({"rounds": 0}, ValueError, "rounds and clock"),
    "error and times": ({"error": "out of memory"}, ValueError, "got both"),
    "baseline that is not there": ({"baseline": "sdpa"}, ValueError, "baseline must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_record_is_refused(name):
    changes, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        document(replace(BASE, **changes))


def test_two_records_of_the_same_are_refused():
    with pytest.raises(ValueError, match="only one of its kind"):
        document(BASE, BASE)


@pytest.mark.parametrize("key", ["environment", "conditions"])
def test_a_document_without_its_circumstances_is_refused(key):
    with pytest.raises(ValueError, match=f"{key} must have"):
        document(BASE, **{key: {}})


CHANGES = {
    "unknown key of a record": (lambda d: d["records"][0].update(speed=1), "known keys only"),
    "unknown key of the document": (lambda d: d.update(more=1), "known keys only"),
    "missing key": (lambda d: d["records"][0].pop("variant"), "must have variant"),
    "missing part": (lambda d: d.pop("command"), "must have command"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_of_another_format_is_refused(name, tmp_path):
    path = tmp_path / "layer.json"
    record.save(document(BASE), path)
    data = json.loads(path.read_text())
    change, message = CHANGES[name]
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f"layer.json: .*{message}"):
        record.load(path)


def test_spread_of_few_and_many():
    assert Spread.of([3.0], 3.0) == (3.0, 3.0, 3.0, 3.0)
    spread = Spread.of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1.0)
    assert spread == (3.5, 2.0, 5.0, 1.0)


def test_the_quiet_figure_is_reported_where_there_is_one():
    quiet = replace(OURS, ms=Spread(1.0, 0.9, 1.1, 0.8), ratio=Spread(2.0, 1.9, 2.1, 1.8))
    assert (OURS.ms.reported, quiet.ms.reported, quiet.ratio.reported) == (1.0, 0.8, 1.8)
    assert document(BASE, OURS).rounds_compared == "medians of the rounds"
    assert document(BASE, quiet).rounds_compared == "quickest fifths of the rounds"
