"""Records into README, page and table of backends; and ``auto``, which the records must support."""

import json
import re

import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("jinja2", reason="jinja2 is not installed")

from benchmarks import hardware, records, report
from mbt_fast.ops.min_sizes import CPU_MIN_SIZE

MACHINE = {"device": "A CPU", "threads": 2, "instruction_set": "avx2", "torch": "2.13.0"}


def info(ratio, dtype="bfloat16", **facts):
    """What ``race`` keeps."""
    ms = {"ours": {"quick": 2.0, "median": 3.0}, "eager": {"quick": 2 * ratio, "median": 9.0}}
    return {
        "dtype": dtype,
        "threads": 2,
        "shape": {"batch": 1, "rows": [8]},
        "baseline": "eager",
        "not_run": {"xformers": "ModuleNotFoundError: <xformers>"},
        "ms": ms,
        "times_faster": {"eager": {"quick": ratio, "median": 3.0}},
        **facts,
    }


def write(folder, number, scale):
    """A file of pytest-benchmark, as far as reports read it."""
    infos = [
        info(scale * (i + 1), dtype, **facts)
        for i, facts in enumerate(report.GAINS.values())
        for dtype in report.DTYPES
    ]
    infos += [info(scale, case="fusion layer", value=value) for value in (0, 4)]
    infos.append(info(scale, case="short streams", mode="forward", operators={"cpu": 1234}))
    names = (f"benchmarks/bench_x.py::test[{i}]" for i in range(len(infos)))
    benchmarks = [{"fullname": n, "extra_info": e} for n, e in zip(names, infos, strict=True)]
    benchmarks.append({"fullname": "interrupted", "extra_info": {"dtype": "float32"}})
    document = {
        "benchmarks": benchmarks,
        "machine_info": MACHINE,
        "commit_info": {"id": "0123456789abcdef"},
        "datetime": f"2026-01-0{number}T00:00:00",
        "ceilings": {"1": {"copy": 10.0}, "2": {"copy": 20.0, "float32": 400.0}},
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{number}.json").write_text(json.dumps(document))


@pytest.fixture
def folder(tmp_path):
    for number, scale in ((1, 1.0), (2, 1.1), (3, 1.3)):
        write(tmp_path / "env", number, scale)
    return tmp_path / "env"


def test_ratios_are_medians_of_the_runs_with_their_spread(folder):
    results = records.read(folder)
    (row,) = results.select(case="MBT-B", mode="backward", dtype="float32")
    assert row.ratio == pytest.approx((2.2, 2.0, 2.6))
    assert str(row.ratio) == "2.2 [2-2.6]"
    assert str(records.Spread.of([2.0])) == "2"
    assert "median of 3 runs; 2026-01-03, commit 0123456789" in results.conditions


def test_gains_of_the_readme_are_those_of_the_records(folder):
    gains = report.gains(records.read(folder))
    assert list(gains) == list(report.GAINS)
    expected = [1.1 * (i + 1) for i in range(len(gains))]
    for dtype in report.DTYPES:
        assert [of[dtype] for of in gains.values()] == pytest.approx(expected)
    block = report.speed_block(folder)
    assert "training step 5.50 in bfloat16, 5.50 in float32" in block
    assert "A CPU, 2 CPU threads, avx2, torch 2.13.0" in block


def test_readme_gets_its_blocks_and_the_plot_for_both_themes(folder, tmp_path):
    readme = tmp_path / "README.md"
    names = ("speed", "hardware")
    readme.write_text("\n".join(f"<!-- {n}: begin -->\nold\n<!-- {n}: end -->" for n in names))
    report.write_readme(folder, readme)
    text = readme.read_text()
    assert "old" not in text
    assert all(block in text for block in report.blocks(folder, records.all_results()).values())
    for path in re.findall(r'(?:src|srcset)="([^"]+)"', text):
        assert (records.ROOT / path).read_text().rstrip().endswith("</svg>")
    with pytest.raises(ValueError, match="markers of 'speed'"):
        report.replace_block("nothing", "speed", "")


def test_the_page_has_every_variant_and_the_reasons_against_others(folder):
    page = report.html(records.read(folder))
    assert page.count("<svg") == 3
    assert "ModuleNotFoundError: &lt;xformers&gt;" in page
    assert "1.1 [1-1.3] (baseline)" in page
    assert "1,234" in page


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="must hold records"):
        records.read(tmp_path)
    assert "Not measured yet" in report.speed_block(None)


def test_the_readme_says_what_records_and_dispatch_say():
    everyone = records.all_results()
    folder = records.newest_of_models(everyone)
    text = report.README.read_text()
    for name, block in report.blocks(folder, everyone).items():
        message = "run python -m benchmarks.report --readme"
        assert report.replace_block(text, name, block) == text, message


def test_backends_verified_on_a_gpu_are_named(monkeypatch, tmp_path):
    assert "never run there" in hardware.hardware_block([])
    entry = {
        "device": "NVIDIA X",
        "capability": [9, 0],
        "commit": "0123456789abcdef",
        "sources": {"a": ""},
    }
    monkeypatch.setattr(hardware, "VERIFIED", tmp_path / "verified.json")
    hardware.VERIFIED.write_text(json.dumps([entry]))
    lines = {line.split(" |")[0]: line for line in hardware.hardware_block([]).splitlines()}
    assert "a on NVIDIA X, at commit 0123456789;" in lines["| H100, H200 (sm_90)"]
    assert "never run there" in lines["| A100 (sm_80)"]


# What ``auto`` takes must win in every record of a CPU.

RECORDS = [r for r in records.all_results() if r.machine["capability"] is None]
DTYPES = (torch.bfloat16, torch.float32, torch.float16)


def taken(row, instruction_set):
    """The backend that ``auto`` takes for the call of a record."""
    dtype, shape = getattr(torch, row["dtype"]), row["shape"]
    size = max(shape["rows"])
    if row["op"] == "linear":  # a call for each stream
        size = min(shape["rows"]) * shape["channels"] * shape["outputs"]
    elif row["op"] != "bottleneck_attention":
        gains = row["approximate"] != "none" and row["case"] != "add"
        size = gains * shape["batch"] * sum(shape["rows"]) * shape["channels"]
    least = CPU_MIN_SIZE[instruction_set][row["op"]].get(dtype)
    return "cpu" if least is not None and size >= least else "sdpa"


@pytest.mark.skipif(not RECORDS, reason="no machine has been measured with these benchmarks yet")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "op", ["bottleneck_attention", "bias_gelu", "add_layer_norm", "residual_add", "linear"]
)
def test_auto_takes_only_what_wins_in_every_record(op, dtype):
    name = str(dtype).removeprefix("torch.")
    rows = [
        (row, results.machine["instruction_set"])
        for results in RECORDS
        for row in results.select(op=op, dtype=name, backend="cpu")
    ]
    if not rows:
        pytest.skip(f"no record has {op} in {name}")
    losses = [
        f"{row.name}: {row.ratio}"
        for row, isa in rows
        if taken(row, isa) == "cpu" and row.ratio[0] < 1
    ]
    assert not losses
