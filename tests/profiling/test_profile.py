"""mbt-fast profile: records, table, page, budget, and an interrupted run."""

import json
import xml.etree.ElementTree as ET

import pytest
import torch

from mbt_fast import MBT, MBTConfig, dispatch
from mbt_fast.cli.main import main
from mbt_fast.flops import forward_flops, training_flops
from mbt_fast.models.registry import config_for
from mbt_fast.profiling import budget, figure3, measurement, runs, sweep, sweep_table
from mbt_fast.profiling.tables import significant

KEYS = {
    "fusion", "share_encoder", "fusion_layer", "n_bottlenecks", "batch_size", "device", "dtype",
    "backend", "mode", "gflops", "gflops_attention", "gflops_linear", "latency_ms_median",
    "latency_ms_p20", "latency_ms_p80", "peak_memory_mb", "clips_per_second",
}  # fmt: skip
TINY = ["profile", "--model", "mbt_tiny", "--dtype", "float32", "--device", "cpu"]
CPU = torch.device("cpu")
SETTING = runs.Setting("forward", 1, CPU, torch.float32)


def profile(tmp_path, *arguments):
    path = tmp_path / "profile.json"
    code = main([*TINY, "--json", str(path), *arguments])
    return code, json.loads(path.read_text())


def test_a_run_from_end_to_end(tmp_path, capsys):
    html = tmp_path / "profile.html"
    code, records = profile(tmp_path, "--seconds", "3", "--html", str(html))
    assert code == 0
    assert sorted({r["fusion_layer"] for r in records}) == [0, 1, 3, 4]
    for record in records:
        assert set(record) >= KEYS
        assert 0 < record["latency_ms_p20"] <= record["latency_ms_median"]
        assert record["latency_ms_median"] <= record["latency_ms_p80"]
    out = capsys.readouterr().out
    page = ET.fromstring(html.read_text())
    assert sum(element.tag.endswith("}svg") for element in page.iter()) == 7
    shown = "".join(page.itertext())
    for words in ("bottleneck (B = 4)", "vanilla (own weights)", "vanilla (shared weights)"):
        assert words in out
        assert words in shown
    for name, value in records[0]["conditions"].items():
        assert f"{name}: {value}" in out
        assert f"{name}: {value}" in shown


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("mode", ["forward", "train"])
def test_records(tmp_path, mode):
    _, records = profile(tmp_path, "--mode", mode, "--batch-size", "2")
    assert len(records) == 3 * 4
    count = forward_flops if mode == "forward" else training_flops
    for record in records:
        fields = ("fusion", "share_encoder", "fusion_layer", "n_bottlenecks")
        config = config_for("mbt_tiny", **{field: record[field] for field in fields})
        assert record["gflops"] == count(config).total / 1e9
        assert record["latency_ms_median"] == pytest.approx(1)
        assert record["clips_per_second"] == pytest.approx(2000)
        assert (record["rounds"], record["mode"]) == (3, mode)
        with torch.device("meta"):
            weights = sum(p.numel() for p in MBT(config).parameters()) * 4 / 2**20
        assert record["peak_memory_mb"] > weights
        assert record["conditions"]["command"].startswith("mbt-fast")
        named = record["conditions"]["attention"].split()[-1]
        assert named in [backend.name for backend in dispatch.BACKENDS]


@pytest.mark.usefixtures("clock")
def test_late_fusion_is_measured_once(tmp_path, monkeypatch):
    built = []
    original = runs.build_models
    monkeypatch.setattr(runs, "build_models", lambda c, *a: built.extend(c) or original(c, *a))
    _, records = profile(tmp_path, "--fusion-layers", "4", "--fusions", "bottleneck", "vanilla")
    assert len(built) == 1
    assert records[0]["latency_ms_median"] == records[1]["latency_ms_median"] is not None


def test_flops_only_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "build_models", None)
    code, records = profile(tmp_path, "--flops-only", "--n-bottlenecks", "4", "16")
    assert code == 0
    assert all(record["latency_ms_median"] is None for record in records)
    assert {r["n_bottlenecks"] for r in records if r["fusion"] == "bottleneck"} == {4, 16}
    assert records[0]["conditions"]["rounds"] == "none: FLOPs only"
    assert "device" not in records[0]["conditions"]


def test_input_options_change_the_cost(tmp_path):
    path = tmp_path / "f.json"
    options = ["--clip-seconds", "4", "--frames", "8", "--tubelet", "2", "--fusion-layers", "12"]
    main(["profile", "--flops-only", "--json", str(path), *options])
    records = json.loads(path.read_text())
    assert round(records[0]["gflops"], 2) == 193.78  # setting C2 of tests/golden/flops.csv


def test_macs_halve_the_table_and_not_the_records(tmp_path, capsys):
    _, records = profile(tmp_path, "--flops-only")
    full = capsys.readouterr().out
    _, same = profile(tmp_path, "--flops-only", "--macs")
    halved = capsys.readouterr().out
    assert [r["gflops"] for r in same] == [r["gflops"] for r in records]
    assert significant(records[0]["gflops"]) in full
    assert significant(records[0]["gflops"] / 2) in halved
    assert "GMACs" in halved
    assert "GFLOPs" not in halved


def test_figure3(capsys):
    assert main(["profile", "--figure3"]) == 0
    out = capsys.readouterr().out
    assert all(value in out for value in ("97.92", "98.39", "204.37"))


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("at", "timed"),
    [
        (1, range(1)),  # in the first call: nothing
        (2, range(1)),
        (3, range(1, 2)),  # after the first model: its time
        (16, range(2, 12)),  # in the warm-up of 11 models: some times
        (25, range(12, 13)),  # in the second round: all
    ],
)
def test_interrupt_keeps_what_was_measured_and_says_so(tmp_path, interrupt_at, capsys, at, timed):
    interrupt_at(at)
    code, records = profile(tmp_path)
    assert code == 130
    assert all(r["rounds"] or r["why_not"] == measurement.INTERRUPTED for r in records)
    assert sum(r["latency_ms_median"] is not None for r in records) in timed
    assert records[0]["conditions"]["rounds"].endswith("interrupted")
    assert "interrupted" in capsys.readouterr().out


@pytest.mark.usefixtures("clock")
def test_the_table_is_printed_even_if_a_file_cannot_be_written(tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    assert main([*TINY, "--json", str(tmp_path / "x.json")]) == 2
    captured = capsys.readouterr()
    assert "bottleneck (B = 4)" in captured.out
    assert captured.err.strip().endswith("mbt-fast: error: no space left")


BAD = {  # of options that bench shares, and of its own
    "batch": (["--batch-size", "0"], "--batch-size must be positive, got 0"),
    "layer": (["--fusion-layers", "5"], "fusion_layer must be at most num_layers = 4"),
    "frames": (["--frames", "3", "--tubelet", "2"], "patch_size['rgb'] must divide"),
    "device": (["--device", "tpu!"], "device must be auto, cpu or cuda[:index], got 'tpu!'"),
    "backend": (["--backend", "triton"], "backend 'triton' cannot run this call"),
    "unknown backend": (["--backend", "fast"], "backend must be one of auto"),
    "infinite": (["--budget-gflops", "inf"], "--budget-gflops must be a finite number"),
    "nan": (["--seconds", "nan"], "--seconds must be a finite number, not below zero, got nan"),
    "clip": (["--clip-seconds", "inf"], "--clip-seconds must be a finite number"),
    "folder": (["--json", "."], "output must be a file, got the folder ."),
    "nowhere": (["--html", "no/such/x.html"], "output must be in a folder that exists"),
    "twice": (["--json", "x", "--html", "x"], "must name different files, got x, x"),
    "figure": (["--figure3", "--json", "x"], "--figure3 must not go with a file"),
    "trace": (["--trace", "x", "--flops-only"], "--trace must not go with --flops-only"),
    "memory": (["--batch-size", "99999999999"], "--batch-size must fit into memory"),
    "budget": (["--budget-ms", "3", "--flops-only"], "--budget-ms must not go with --flops-only"),
    "config": (["--config", "nowhere.json"], "nowhere.json"),
    "no config": (["--config", "pyproject.toml"], "pyproject.toml: not a config of mbt_fast"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_options_are_one_line_and_exit_2(arguments, message, capsys):
    assert main([*TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def records_of(base, layers, counts, latency=None):
    configs = sweep.variants(base, layers, ["bottleneck", "vanilla"], counts)
    records = [sweep.record_of(config, SETTING) for config in configs]
    for record in records:
        record["latency_ms_median"] = latency(record) if latency else None
    return records


def test_ratios_are_to_vanilla_with_own_weights_at_the_same_layer():
    records = records_of(config_for("mbt_tiny"), [0, 4], [4], lambda r: 2.0 + r["fusion_layer"])
    headers, rows = sweep_table.table(records)
    assert "official\ncode" not in headers
    ratios = {(row[0], row[1]): row[headers.index("total\nratio")] for row in rows}
    at_0 = [r["gflops"] for r in records if r["fusion_layer"] == 0]
    assert ratios["bottleneck (B = 4)", "0"] == f"{at_0[0] / at_0[1]:.3f}"
    assert ratios["vanilla (own weights)", "0"] == ratios["bottleneck (B = 4)", "4"] == "1.000"
    headers, rows = sweep_table.table(records[:1])
    assert "total\nratio" not in headers  # there is nothing to compare with


def test_budget_takes_the_best_layer_that_fits():
    base = MBTConfig()
    records = records_of(base, [0, 4, 8, 10, 12], [4])
    record, limit = budget.best_within(records, base, gflops=435.0)
    assert record["fusion_layer"] == 8
    fits = [
        forward_flops(MBTConfig(fusion_layer=8, n_bottlenecks=b)).total for b in (limit, limit + 1)
    ]
    assert fits[0] <= 435e9 < fits[1]
    record, limit = budget.best_within(records, base, gflops=434.1)
    assert (record["fusion_layer"], limit) == (10, 5)
    assert budget.best_within(records, base, gflops=433.0) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fusions", "vanilla", "--budget-gflops", "1"], "nothing to choose from"),
        (["--n-bottlenecks", "0", "--budget-gflops", "1"], "nothing to choose from"),
        (["--budget-gflops", "1e-9"], "no bottleneck model of this profile fits"),
        (["--budget-gflops", "1"], "Within 1 GFLOPs: fusion layer 3 with B = 4"),
        (["--budget-gflops", "1"], "But the last layer alone exchanges nothing"),
    ],
)
def test_what_is_said_of_a_budget(capsys, arguments, said):
    assert main([*TINY, "--flops-only", *arguments]) == 0
    assert said in capsys.readouterr().out


def test_budget_of_one_modality_ends():
    base = config_for("mbt_tiny", modalities=("rgb",))
    records = records_of(base, [2], [4])
    assert budget.best_within(records, base, gflops=100.0) == (records[0], 4)


def test_budget_in_milliseconds():
    base = MBTConfig()
    records = records_of(
        base, [0, 8, 10], [4, 64], lambda r: 100 - r["fusion_layer"] + r["n_bottlenecks"]
    )
    record, _ = budget.best_within(records, base, milliseconds=95)
    assert (record["fusion_layer"], record["n_bottlenecks"]) == (10, 4)
    record, largest = budget.best_within(records, base, milliseconds=1000)
    assert (record["fusion_layer"], record["n_bottlenecks"], largest) == (8, 4, 64)


def test_paper_map_between_points_and_at_other_depths():
    assert figure3.paper_map(9, 12) == pytest.approx((42.44 + 41.82) / 2)
    assert figure3.paper_map(16, config_for("mbt_large").num_layers) == pytest.approx(42.44)
    with pytest.raises(ValueError, match="fusion_layer must be 0 to 12, got 13"):
        figure3.paper_map(13, 12)


def test_models_of_a_profile_share_their_weights():
    configs = [config_for("mbt_tiny", fusion_layer=layer) for layer in (0, 2)]
    first, second = runs.build_models(configs, SETTING)
    assert first.head.weight.data_ptr() == second.head.weight.data_ptr()
    assert all(p.isfinite().all() and p.device.type == "cpu" for p in first.parameters())
    assert first.head.weight.ne(0).any()  # zeros would run faster than real weights
