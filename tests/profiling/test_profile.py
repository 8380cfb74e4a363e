"""mbt-fast profile: records, choice within a budget, outputs, and an interrupted run."""

import json

import pytest
import torch

from mbt_fast import MBTConfig, create_model
from mbt_fast.cli.main import main
from mbt_fast.flops import forward_flops, training_flops
from mbt_fast.models.registry import config_for
from mbt_fast.profiling import budget, machine, measure, plan

KEYS = {
    "fusion", "share_encoder", "fusion_layer", "n_bottlenecks", "batch_size", "device", "dtype",
    "backend", "mode", "gflops", "gflops_attention", "gflops_linear", "latency_ms_median",
    "latency_ms_p20", "latency_ms_p80", "peak_memory_mb", "clips_per_second",
}  # fmt: skip
TINY = ["profile", "--model", "mbt_tiny", "--seconds", "0", "--dtype", "float32", "--device", "cpu"]


def profile(tmp_path, *arguments):
    path = tmp_path / "profile.json"
    code = main([*TINY, "--json", str(path), *arguments])
    return code, json.loads(path.read_text())


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_records(tmp_path, capsys, mode):
    code, records = profile(tmp_path, "--mode", mode, "--batch-size", "2")
    assert code == 0
    assert len(records) == 3 * 4
    count = forward_flops if mode == "forward" else training_flops
    for record in records:
        assert set(record) >= KEYS
        config = config_for(
            "mbt_tiny",
            fusion=record["fusion"],
            share_encoder=record["share_encoder"],
            fusion_layer=record["fusion_layer"],
            n_bottlenecks=record["n_bottlenecks"],
        )
        assert record["gflops"] == count(config).total / 1e9
        assert record["latency_ms_p20"] <= record["latency_ms_median"] <= record["latency_ms_p80"]
        assert record["clips_per_second"] == pytest.approx(2000 / record["latency_ms_median"])
        assert record["rounds"] >= 2
        weights = sum(p.numel() for p in create_model_of(config).parameters()) * 4 / 2**20
        assert record["peak_memory_mb"] > weights
        assert record["mode"] == mode
        assert record["conditions"]["command"].startswith("mbt-fast")
    assert sorted({r["fusion_layer"] for r in records}) == [0, 1, 3, 4]
    assert "vanilla (own weights)" in capsys.readouterr().out


def create_model_of(config):
    from mbt_fast import MBT

    with torch.device("meta"):
        return MBT(config)


def test_late_fusion_is_measured_once(tmp_path):
    _, records = profile(tmp_path, "--fusion-layers", "4", "--fusions", "bottleneck", "vanilla")
    assert records[0]["latency_ms_median"] == records[1]["latency_ms_median"]
    assert records[0]["gflops"] == records[1]["gflops"]


def test_flops_only_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "build_models", None)
    code, records = profile(tmp_path, "--flops-only", "--n-bottlenecks", "4", "16")
    assert code == 0
    assert all(record["latency_ms_median"] is None for record in records)
    assert {r["n_bottlenecks"] for r in records if r["fusion"] == "bottleneck"} == {4, 16}
    assert records[0]["conditions"]["rounds"] == "none: FLOPs only"
    assert "device" not in records[0]["conditions"]


def test_input_options_change_the_cost(tmp_path):
    arguments = [
        "profile",
        "--flops-only",
        "--json",
        str(tmp_path / "f.json"),
        "--fusion-layers",
        "12",
    ]
    main([*arguments, "--clip-seconds", "4", "--frames", "8", "--tubelet", "2"])
    records = json.loads((tmp_path / "f.json").read_text())
    assert round(records[0]["gflops"], 2) == 193.78  # setting C2 of tests/golden/flops.csv


def test_macs_halve_the_table_and_not_the_records(tmp_path, capsys):
    _, records = profile(tmp_path, "--flops-only")
    full = capsys.readouterr().out
    _, same = profile(tmp_path, "--flops-only", "--macs")
    halved = capsys.readouterr().out
    assert [r["gflops"] for r in same] == [r["gflops"] for r in records]
    assert "2 per multiply-add" in full
    assert "GMACs per clip, 1 per multiply-add" in halved


def test_figure3(capsys):
    assert main(["profile", "--figure3"]) == 0
    out = capsys.readouterr().out
    assert "97.92" in out
    assert "98.39" in out
    assert "204.37" in out


def test_html_is_one_page(tmp_path):
    page = tmp_path / "profile.html"
    profile(tmp_path, "--html", str(page))
    text = page.read_text()
    assert text.count("<svg") >= 5
    assert "AudioSet" in text


@pytest.mark.parametrize(
    ("at", "timed"),
    [
        (3, "none"),  # in the warm-up of 11 models
        (16, "some"),  # in the first round
        (25, "all"),  # in the second
    ],
)
def test_interrupt_keeps_what_was_measured_and_says_so(tmp_path, monkeypatch, capsys, at, timed):
    calls = []
    original = measure.Step.__call__

    def step(self):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(measure.Step, "__call__", step)
    code, records = profile(tmp_path)
    counts = {"none": 0, "some": range(1, len(records)), "all": len(records)}
    measured = [r for r in records if r["latency_ms_median"] is not None]
    assert code == 130
    assert any(r["peak_memory_mb"] is not None for r in records)
    assert len(measured) == counts[timed] or (timed == "some" and len(measured) in counts[timed])
    assert records[0]["conditions"]["rounds"].endswith("interrupted")
    out = capsys.readouterr().out
    assert "vanilla" in out
    assert "interrupted" in out


def test_the_table_is_printed_even_if_a_file_cannot_be_written(tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    assert main([*TINY, "--json", str(tmp_path / "x.json")]) == 2
    captured = capsys.readouterr()
    assert "bottleneck (B = 4)" in captured.out
    assert captured.err.strip().endswith("mbt-fast: error: no space left")


BAD = {
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
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_options_are_one_line_and_exit_2(arguments, message, capsys):
    assert main([*TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def records_of(base, layers, counts, latency=None):
    configs = plan.variants(base, layers, ["bottleneck", "vanilla"], counts)
    settings = {"mode": "forward", "batch_size": 1, "device": "x", "dtype": "y", "backend": "auto"}
    records = [plan.record_of(config, **settings) for config in configs]
    for record in records:
        record["latency_ms_median"] = latency(record) if latency else None
    return records


def test_budget_takes_the_best_layer_that_fits():
    base = MBTConfig()
    records = records_of(base, [0, 4, 8, 10, 12], [4])
    choice = budget.best_within(records, base, gflops=435.0)
    assert (choice.record["fusion_layer"], choice.paper_map) == (8, 42.44)
    limit = choice.largest_n_bottlenecks
    fits = [
        forward_flops(MBTConfig(fusion_layer=8, n_bottlenecks=b)).total for b in (limit, limit + 1)
    ]
    assert fits[0] <= 435e9 < fits[1]
    tight = budget.best_within(records, base, gflops=434.1)
    assert (tight.record["fusion_layer"], tight.largest_n_bottlenecks) == (10, 5)
    assert budget.best_within(records, base, gflops=433.0) is None


def test_budget_without_bottlenecks(capsys):
    arguments = [*TINY, "--flops-only", "--budget-gflops", "1"]
    assert main([*arguments, "--fusions", "vanilla"]) == 0
    assert "nothing to choose from" in capsys.readouterr().out
    assert main([*arguments, "--n-bottlenecks", "0"]) == 0
    assert "nothing to choose from" in capsys.readouterr().out
    assert main([*TINY, "--flops-only", "--budget-gflops", "1e-9"]) == 0
    assert "no bottleneck model of this profile fits" in capsys.readouterr().out


def test_budget_of_one_modality_ends():
    base = config_for("mbt_tiny", modalities=("rgb",))
    records = records_of(base, [2], [4])
    assert budget.best_within(records, base, gflops=100.0).largest_n_bottlenecks == 4


def test_budget_in_milliseconds():
    base = MBTConfig()
    records = records_of(
        base, [0, 8, 10], [4, 64], lambda r: 100 - r["fusion_layer"] + r["n_bottlenecks"]
    )
    choice = budget.best_within(records, base, milliseconds=95)
    assert (choice.record["fusion_layer"], choice.record["n_bottlenecks"]) == (10, 4)
    wide = budget.best_within(records, base, milliseconds=1000)
    assert (wide.record["fusion_layer"], wide.largest_n_bottlenecks) == (8, 64)
    assert wide.record["n_bottlenecks"] == 4


def test_paper_map_between_points_and_at_other_depths():
    assert budget.paper_map(9, MBTConfig()) == pytest.approx((42.44 + 41.82) / 2)
    assert budget.paper_map(16, config_for("mbt_large")) == pytest.approx(42.44)


def test_models_of_a_profile_share_their_weights():
    setting = measure.Setting("forward", 1, torch.device("cpu"), torch.float32, "auto")
    configs = [config_for("mbt_tiny", fusion_layer=layer) for layer in (0, 2)]
    first, second = measure.build_models(configs, setting)
    assert first.head.weight.data_ptr() == second.head.weight.data_ptr()
    assert all(p.isfinite().all() and p.device.type == "cpu" for p in first.parameters())
    assert first.head.weight.ne(0).any()  # zeros would run faster than real weights


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": False}, torch.float32),
    ],
)
def test_best_precision_of_a_cpu(features, dtype, monkeypatch):
    monkeypatch.setattr(machine.native, "why_missing", list)
    monkeypatch.setattr(machine.native, "cpu_features", lambda: features)
    assert machine.choose_dtype("auto", torch.device("cpu"))[0] == dtype


def test_best_precision_without_the_compiled_part(monkeypatch):
    monkeypatch.setattr(machine.native, "why_missing", lambda: ["it is not built"])
    dtype, why = machine.choose_dtype("auto", torch.device("cpu"))
    assert dtype == torch.float32
    assert "it is not built" in why


def test_cost_model_of_create_model_is_the_config():
    assert create_model("mbt_tiny").config == config_for("mbt_tiny")
