"""mbt-fast bench: rows, verdicts, the suggestion, a budget that ends, and an interrupted run."""

import json

import pytest
import torch

from mbt_fast import dispatch
from mbt_fast.bench import comparison, models, ops, suggest, ways
from mbt_fast.bench.comparison import Bench, Deadline
from mbt_fast.bench.rows import Row, Spread
from mbt_fast.cli.main import main
from mbt_fast.models import MBT
from mbt_fast.models.registry import config_for
from mbt_fast.profiling.measure import Setting

TINY = ["bench", "--model", "mbt_tiny", "--seconds", "300", "--dtype", "float32", "--device", "cpu"]
CPU = torch.device("cpu")
FORWARD = Setting("forward", 1, CPU, torch.float32, "auto")
TRAIN = Setting("train", 1, CPU, torch.float32, "auto")
ABLE = [
    backend.name
    for backend in dispatch.BACKENDS
    if ops.can_run(backend, dispatch.Call("bottleneck_attention", CPU, torch.float32))[0]
]


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    """Time is no limit, so that what runs does not depend on how busy the machine is."""
    monkeypatch.setattr(comparison, "MAX_ROUNDS", 3)


def bench(tmp_path, *arguments):
    path = tmp_path / "bench.json"
    code = main([*TINY, "--json", str(path), *arguments])
    return code, json.loads(path.read_text())


def rows_of(document, part, entry=None):
    return {
        row["variant"]: row
        for row in document["rows"]
        if row["part"] == part and entry in (None, row["entry"])
    }


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_every_backend_is_timed_or_says_why_not(tmp_path, capsys, mode):
    code, document = bench(tmp_path, "--mode", mode, "--batch-size", "2")
    assert code == 0
    attention = rows_of(document, "op", "bottleneck_attention")
    assert set(attention) == {backend.name for backend in dispatch.BACKENDS}
    for name, row in attention.items():
        assert (row["rounds"] >= 2) == (name in ABLE)
        assert row["note"]
        if row["rounds"]:
            assert row["ms_p20"] <= row["ms_median"] <= row["ms_p80"]
            assert row["baseline"] == "sdpa"
    assert attention["sdpa"]["times_faster_median"] == 1
    assert set(document["dispatch"]) == {
        "bottleneck_attention", "bias_gelu", "add_layer_norm", "residual_add",
    }  # fmt: skip
    out = capsys.readouterr().out
    assert "triton: no: device is cpu, needs cuda" in out
    assert "auto takes" in out


def test_training_compares_what_is_kept(tmp_path):
    _, document = bench(tmp_path, "--mode", "train", "--batch-size", "2")
    layer, model = rows_of(document, "layer"), rows_of(document, "model", "ways")
    kept = [layer[f"auto, memory {m}"]["saved_mb"] for m in ("full", "reduced", "minimal")]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 3
    assert next(iter(layer)) == next(iter(model)) == "sdpa, memory full"
    assert "auto, memory reduced, CLS rows only" in model
    assert [s["choice"] for s in document["suggestion"]] == [
        "backend",
        "dtype",
        "memory",
        "cls_only",
        "capture",
        "batch size",
    ]


def test_inference_has_no_choice_of_memory(tmp_path):
    _, document = bench(tmp_path, "--batch-size", "1")
    assert set(rows_of(document, "model", "ways")) >= {"sdpa", "auto", "auto, CLS rows only"}
    assert all(row.get("saved_mb") is None for row in document["rows"])
    assert "memory" not in [s["choice"] for s in document["suggestion"]]


def test_conditions_and_config_repeat_the_run(tmp_path):
    _, document = bench(tmp_path, "--batch-size", "2", "--frames", "4")
    assert document["config"]["input_size"]["rgb"] == [4, 32, 32]
    assert document["conditions"]["call"].endswith("at batch 2")
    assert set(document["conditions"]) >= {"device", "dtype", "versions", "date", "command"}


def test_auto_dtype_compares_the_others(tmp_path):
    _, document = bench(tmp_path, "--dtype", "auto", "--batch-size", "1")
    usual = document["conditions"]["dtype"].split()[0]
    (other,) = {"float32", "bfloat16"} - {usual}
    assert f"auto, {other}" in rows_of(document, "model", "ways")
    reason = next(s for s in document["suggestion"] if s["choice"] == "dtype")["reason"]
    assert "times as fast as" in reason


def test_batch_sizes_that_were_asked_for(tmp_path, capsys):
    _, document = bench(tmp_path, "--batch-size", "1", "3")
    grown = rows_of(document, "model", "batch size 1 and 3")
    assert [row["batch_size"] for row in grown.values()] == [1, 3]
    assert grown["batch 3"]["clips_per_second"] == pytest.approx(
        3000 / grown["batch 3"]["ms_median"]
    )
    assert "batch size:" in capsys.readouterr().out


def test_the_suggested_code_runs(tmp_path):
    _, document = bench(tmp_path, "--batch-size", "1")
    names = {"model": MBT(config_for("mbt_tiny")), "torch": torch}
    exec(document["code"], names)
    assert names["model"].savings.memory == "reduced"


@pytest.mark.parametrize(
    ("fusion", "share"),
    [("vanilla", False), ("vanilla", True), ("bottleneck", True)],
    ids=["pairwise", "joined", "shared"],
)
def test_every_fusion_from_a_config_file(tmp_path, fusion, share):
    saved = tmp_path / "model"
    MBT(config_for("mbt_tiny", fusion=fusion, share_encoder=share)).save_pretrained(saved)
    config = str(saved / "config.json")
    for mode in ("forward", "train"):
        code, document = bench(tmp_path, "--config", config, "--mode", mode, "--batch-size", "1")
        assert code == 0
        assert document["config"]["fusion"] == fusion
        assert rows_of(document, "layer")


def test_one_modality(tmp_path):
    saved = tmp_path / "model"
    MBT(config_for("mbt_tiny", modalities=("rgb",))).save_pretrained(saved)
    code, document = bench(tmp_path, "--config", str(saved / "config.json"), "--batch-size", "1")
    assert code == 0
    assert rows_of(document, "op", "bottleneck_attention")["sdpa"]["rounds"] >= 2


def test_no_time_leaves_out_and_says_so(tmp_path, capsys):
    code, document = bench(tmp_path, "--seconds", "0")
    assert code == 0
    ran = [row for row in document["rows"] if row["rounds"]]
    left_out = [row for row in document["rows"] if row["note"] == comparison.NO_TIME]
    assert {row["variant"] for row in ran} == {"sdpa", "reference"}  # stock, which runs in any case
    assert left_out
    assert "--seconds were over" in capsys.readouterr().out


@pytest.mark.parametrize("at", [1, 30])
def test_interrupt_keeps_what_was_measured_and_says_so(tmp_path, monkeypatch, capsys, at):
    calls = []
    original = comparison.interleaved_times

    def interrupted(variants, *args, **kwargs):
        def called(run):
            def wrapper():
                calls.append(1)
                if len(calls) == at:
                    raise KeyboardInterrupt
                return run()

            return wrapper

        return original({name: called(run) for name, run in variants.items()}, *args, **kwargs)

    monkeypatch.setattr(comparison, "interleaved_times", interrupted)
    code, document = bench(tmp_path, "--batch-size", "1")
    assert code == 130
    assert document["conditions"]["times"].endswith("interrupted")
    assert document["suggestion"] == []
    assert any(row["rounds"] for row in document["rows"]) == (at > 1)
    assert "suggestion: none" in capsys.readouterr().out


BAD = {
    "batch": (["--batch-size", "0"], "--batch-size must be positive, got 0"),
    "seconds": (["--seconds", "nan"], "--seconds must be a finite number"),
    "device": (["--device", "tpu!"], "device must be auto, cpu or cuda[:index]"),
    "folder": (["--json", "."], "output must be a file, got the folder ."),
    "config": (["--config", "nowhere.json"], "nowhere.json"),
    "no config": (["--config", "pyproject.toml"], "pyproject.toml: not a config of mbt_fast"),
    "patches": (["--frames", "3", "--tubelet", "2"], "patch_size['rgb'] must divide"),
    "memory": (["--batch-size", "99999999999"], "--batch-size must fit into memory"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_options_are_one_line_and_exit_2(arguments, message, capsys):
    assert main([*TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def row(variant, *seconds, **more):
    return Row("model", models.WAYS, variant, tuple(seconds), **more)


class TestVerdict:
    def test_the_fastest(self):
        rows = {"sdpa": row("sdpa", 2.0, 2.0), "cpu": row("cpu", 1.0, 1.0)}
        assert suggest.verdict_of_auto(rows, "cpu") == "auto takes cpu, the fastest here"

    def test_not_the_fastest_is_said_plainly(self):
        rows = {"sdpa": row("sdpa", 1.0, 1.0), "cpu": row("cpu", 1.5, 1.5)}
        said = suggest.verdict_of_auto(rows, "cpu")
        assert said == "auto takes cpu, but sdpa is 1.50 times as fast here"

    def test_within_the_spread_nothing_is_claimed(self):
        rows = {"sdpa": row("sdpa", 1.0, 1.1, 0.9), "cpu": row("cpu", 1.05, 1.0, 1.0)}
        assert "within the spread" in suggest.verdict_of_auto(rows, "cpu")

    def test_not_measured(self):
        assert "was not measured" in suggest.verdict_of_auto({"cpu": row("cpu")}, "cpu")


class TestAdvice:
    def advise(self, setting, rows, *, any_dtype=False):
        config = config_for("mbt_tiny")
        found = Bench(setting, rows=rows)
        compared = ways.of_model(config, setting, any_dtype=any_dtype)
        advice = suggest.Advisor(found, config).advise(compared, "asked for")
        return advice.way, {one.choice: one for one in advice.suggestions}

    def test_sdpa_where_it_is_faster(self):
        rows = [row("sdpa", 1.0, 1.0), row("auto", 1.2, 1.2)]
        way, said = self.advise(FORWARD, rows)
        assert way.backend == "sdpa"
        assert said["backend"].reason.startswith("1.20 [1.20-1.20] times as fast as auto")

    def test_auto_where_nothing_is_clearly_faster(self):
        rows = [row("sdpa", 1.0, 1.0), row("auto", 1.01, 1.01), row("cpu", 1.0, 1.0)]
        way, said = self.advise(FORWARD, rows)
        assert way == ways.usual(FORWARD)
        assert said["cls_only"].take == "off"

    def test_a_faster_backend_is_named(self):
        (named,) = set(ABLE) - {"sdpa", "reference", "auto"} or {None}
        if named is None:
            pytest.skip("no kernels of ours run here")
        rows = [row("sdpa", 1.0, 1.0), row("auto", 1.0, 1.0), row(named, 0.5, 0.5)]
        assert self.advise(FORWARD, rows)[0].backend == named

    def test_the_faster_dtype(self):
        setting = Setting("forward", 1, CPU, torch.bfloat16, "auto")
        rows = [row("sdpa", 1.0, 1.0), row("auto", 1.0, 1.0), row("auto, float32", 0.5, 0.5)]
        way, said = self.advise(setting, rows, any_dtype=True)
        assert way.dtype == torch.float32
        assert "times as fast as bfloat16" in said["dtype"].reason

    def test_least_memory_among_the_fastest(self):
        rows = [
            row("sdpa, memory full", 1.0, 1.0, peak_bytes=10),
            row("auto, memory full", 1.0, 1.0, peak_bytes=10),
            row("auto, memory reduced", 1.01, 1.01, peak_bytes=6),
            row("auto, memory minimal", 1.3, 1.3, peak_bytes=4),
        ]
        way, said = self.advise(TRAIN, rows)
        assert (way.memory, said["memory"].take) == ("reduced", "reduced")
        assert "full 1.01 times as fast with 1.67 of its peak memory" in said["memory"].reason
        assert 'set_savings(memory="' not in suggest.as_code(way)

    def test_cls_only_where_it_pays(self):
        rows = [row("sdpa", 1.0, 1.0), row("auto", 1.0, 1.0), row("auto, CLS rows only", 0.9, 0.9)]
        way, _ = self.advise(FORWARD, rows)
        assert suggest.as_code(way) == "model = model.to(torch.float32).set_savings(cls_only=True)"

    def test_nothing_ran(self):
        way, said = self.advise(TRAIN, [])
        assert way == ways.usual(TRAIN)
        assert all("measured" in said[c].reason for c in ("backend", "memory", "cls_only"))


def test_capture_is_compared_on_a_gpu_in_inference_only():
    config = config_for("mbt_tiny")
    gpu = Setting("forward", 1, torch.device("meta"), torch.float32, "auto")
    assert not any(way.capture for way in ways.of_model(config, gpu, any_dtype=False))
    way = ways.Way("auto", torch.float32, capture=True, cls_only=True)
    assert way.name(gpu) == "auto, CLS rows only, captured"
    assert suggest.as_code(way).endswith("; model = model.capture(inputs)")


@pytest.mark.gpu
def test_on_a_gpu_a_capture_is_timed(tmp_path):
    _, document = bench(tmp_path, "--device", "cuda", "--batch-size", "1")
    captured = rows_of(document, "model", "ways")["auto, CLS rows only, captured"]
    assert captured["rounds"] >= 2
    assert captured["peak_mb"] > 0
    (choice,) = (s for s in document["suggestion"] if s["choice"] == "capture")
    assert choice["take"] in ("yes", "no")
    assert "captured" in choice["reason"] or "times as fast" in choice["reason"]


def test_throughput_counts_clips():
    small, large = row("batch 1", 1.0, 1.0), row("batch 4", 2.0, 2.0, batch_size=4)
    assert large.clips_per_second == 2
    assert large.times_faster(small) == Spread(2, 2, 2)


def test_the_last_batch_size_that_paid_is_suggested():
    entry = models.GROWTH
    pairs = [
        Row("model", f"{entry} 1 and 2", "batch 1", (1.0,), 1),
        Row("model", f"{entry} 1 and 2", "batch 2", (1.0,), 2),
        Row("model", f"{entry} 2 and 4", "batch 2", (1.0,), 2),
        Row("model", f"{entry} 2 and 4", "batch 4", (2.1,), 4),
    ]
    found = suggest.batch_size(Bench(FORWARD, rows=pairs), "it ended")
    assert (found.take, found.reason) == ("2", "2 clips/s, 2.00 times those of batch 1; it ended")


def test_growth_stops_where_memory_ends(monkeypatch):
    config = config_for("mbt_tiny")
    found = Bench(FORWARD)
    built = models.Models(config, FORWARD)
    models.measure_ways(found, built, Deadline(300), any_dtype=False)
    monkeypatch.setattr(models, "free_bytes", lambda device: 1)
    way = ways.usual(FORWARD)
    ended = models.measure_growth(found, built, way, models.doubling(1), Deadline(300))
    assert ended == "batch 2 was not tried: it would take most of the free memory"


def test_what_does_not_fit_is_left_out_and_the_rest_goes_on():
    def fail():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    found = Bench(FORWARD)
    rows = {name: row(name) for name in ("small", "large")}
    found.compare(rows, {"small": lambda: None, "large": fail}, Deadline(300))
    notes = {r.variant: r.note for r in found.rows}
    assert notes == {"small": "", "large": comparison.NO_MEMORY}
    assert [r.ran for r in found.rows] == [True, False]


def test_another_error_is_not_hidden():
    def fail():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        Bench(FORWARD).compare({"x": row("x")}, {"x": fail}, Deadline(0))
