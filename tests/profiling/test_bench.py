"""mbt-fast bench: rows, what is fastest, the line of code, limits, and an interrupted run."""

import json
from dataclasses import replace
from itertools import count

import pytest
import torch

from mbt_fast import dispatch
from mbt_fast.cli.main import main
from mbt_fast.models import MBT
from mbt_fast.models.registry import config_for
from mbt_fast.profiling import measurement, recommend
from mbt_fast.profiling.comparison import Comparisons, Row, fastest
from mbt_fast.profiling.measurement import Measurement
from mbt_fast.profiling.recommend import Variant
from mbt_fast.profiling.runs import Setting
from mbt_fast.profiling.timing import Deadline

TINY = ["bench", "--model", "mbt_tiny", "--dtype", "float32", "--device", "cpu"]
CPU = torch.device("cpu")
FORWARD = Setting("forward", 1, CPU, torch.float32)
TRAIN = Setting("train", 1, CPU, torch.float32)


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


def test_a_run_from_end_to_end(tmp_path, capsys):
    code, document = bench(tmp_path, "--seconds", "30", "--batch-size", "1", "2")
    assert code == 0
    out = capsys.readouterr().out
    assert document["code"] in out
    model = MBT(config_for("mbt_tiny"))
    exec(document["code"], {"model": model, "torch": torch})
    for entry in ("bottleneck_attention", "fusion layer", "variants", "batch size"):
        rows = [row for row in document["rows"] if row["entry"] == entry]
        assert f": {entry}\n" in out
        ran = [row for row in rows if row["rounds"]]
        assert ran[0]["times_faster_median"] == 1
        assert any(row["fastest"] for row in ran)
        assert all(row["ms_p20"] <= row["ms_median"] <= row["ms_p80"] for row in ran)
    for name, value in document["conditions"].items():
        assert f"{name}: {value}" in out


CHOICES = ["backend", "dtype", "recompute", "cls_only", "capture", "batch size"]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("mode", "variants"),
    [
        ("forward", ["sdpa", "auto", "auto, CLS rows only"]),
        ("train", ["sdpa, recompute none", "auto, recompute norms, CLS rows only"]),
    ],
)
def test_every_backend_and_option_is_timed_or_says_why_not(tmp_path, capsys, mode, variants):
    code, document = bench(tmp_path, "--mode", mode, "--batch-size", "2", "--frames", "4")
    assert code == 0
    assert document["config"]["input_size"]["rgb"] == [4, 32, 32]
    attention = rows_of(document, "op", "bottleneck_attention")
    assert set(attention) == {backend.name for backend in dispatch.BACKENDS}
    for row in attention.values():
        refused = row["note"].startswith("no")
        assert row["rounds"] == (0 if refused else 3)
        assert row["note"]
        assert refused or row["baseline"] == "sdpa"
    ops = {"bottleneck_attention", "bias_gelu", "add_layer_norm", "residual_add", "linear"}
    assert set(document["dispatch"]) == ops
    for op in ops:
        ran = [row for row in rows_of(document, "op", op).values() if row["rounds"]]
        assert ran
        assert ran[0]["ms_median"] == pytest.approx(1)
        assert ran[0]["clips_per_second"] == pytest.approx(2000)
    out = capsys.readouterr().out
    assert "triton: no" in out
    assert "auto takes" in out
    layer, model = rows_of(document, "layer"), rows_of(document, "model", "variants")
    assert next(iter(layer)) == next(iter(model)) == variants[0]
    assert set(variants) <= set(model)
    assert all(row["peak_mb"] > 0 for row in model.values())
    training = mode == "train"
    choices = [choice for choice in CHOICES if training or choice != "recompute"]
    assert [one["choice"] for one in document["suggestion"]] == choices
    assert any("saved_mb" in row for row in document["rows"]) == training
    if training:
        kept = [layer[f"auto, recompute {m}"]["saved_mb"] for m in ("none", "norms", "mlp")]
        assert kept == sorted(set(kept), reverse=True)


@pytest.mark.usefixtures("clock")
def test_other_dtypes_and_batch_sizes_that_were_asked_for(tmp_path):
    _, document = bench(tmp_path, "--dtype", "auto", "--batch-size", "1", "3")
    usual = document["conditions"]["dtype"].split()[0]
    (other,) = {"float32", "bfloat16"} - {usual}
    rounds = rows_of(document, "model", "variants")[f"auto, {other}"]["rounds"]
    assert rounds == (3 if other == "float32" else 0)  # bfloat16 is not tried where it is emulated
    grown = rows_of(document, "model", "batch size")
    assert [row["batch_size"] for row in grown.values()] == [1, 3]
    assert grown["batch 3"]["clips_per_second"] == pytest.approx(3000)
    assert (grown["batch 1"]["fastest"], grown["batch 3"]["fastest"]) == (False, True)
    assert document["suggestion"][-1]["take"] == "3"


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": "vanilla"},
        {"fusion": "vanilla", "share_encoder": True},
        {"share_encoder": True},
        {"modalities": ("rgb",)},
        {"classifier": "gap"},
    ],
    ids=["pairwise", "joined", "shared", "one modality", "a mean"],
)
def test_every_model_from_a_config_file(tmp_path, changes):
    config = config_for("mbt_tiny", **changes)
    MBT(config).save_pretrained(tmp_path / "model")
    path = str(tmp_path / "model" / "config.json")
    for mode in ("forward", "train"):
        code, document = bench(tmp_path, "--config", path, "--mode", mode, "--batch-size", "1")
        assert code == 0
        assert document["config"] == json.loads(json.dumps(config.to_dict()))
        layer = rows_of(document, "layer")
        for name, row in layer.items():
            assert row["rounds"] or row["note"].startswith("no: "), name
        saved = [r["rounds"] for name, r in layer.items() if name.endswith("CLS rows only")]
        assert any(saved) if config.n_cls else not saved


@pytest.mark.usefixtures("clock")
def test_no_time_leaves_out_and_says_so(tmp_path, capsys):
    code, document = bench(tmp_path, "--seconds", "0")
    assert code == 0
    ran = {row["variant"] for row in document["rows"] if row["rounds"]}
    assert ran <= {"sdpa", "reference", "batch 1"}  # the baselines, which run in any case
    assert any(row["note"] == measurement.NO_TIME for row in document["rows"])
    assert "--seconds were over" in capsys.readouterr().out


@pytest.mark.parametrize("ticks", [40, 80, 120, 160, 240, 320])
def test_what_was_measured_is_shown_wherever_the_time_runs_out(tmp_path, capsys, clock, ticks):
    """It crashed at its end where the time ran out between two batch sizes."""
    code, document = bench(tmp_path, "--seconds", str(ticks * clock))
    assert code == 0
    out = capsys.readouterr().out
    rows = document["rows"]
    assert any(row["rounds"] for row in rows)
    assert any(row["note"] == measurement.NO_TIME for row in rows)
    for row in rows:
        assert row["rounds"] or row["note"]
        assert f"\n{row['variant']}" in out
    grown = rows_of(document, "model", "batch size")
    assert [row["batch_size"] for row in grown.values()] == [1 << n for n in range(len(grown))]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("at", [2, 9, 30, 41, 60])
def test_interrupt_keeps_what_was_measured_and_says_so(tmp_path, interrupt_at, capsys, at):
    interrupt_at(at)
    code, document = bench(tmp_path, "--batch-size", "1")
    assert code == 130
    assert document["conditions"]["times"].endswith("interrupted")
    out = capsys.readouterr().out
    compared = any(row["entry"] == "batch size" for row in document["rows"])
    assert compared == bool(document["suggestion"]) == bool(document["code"])
    assert compared or "the comparison of the models did not end" in out
    assert any(row["rounds"] for row in document["rows"]) == (at > 2)
    assert all(row["rounds"] or row["note"] for row in document["rows"])


@pytest.mark.usefixtures("clock")
def test_what_was_measured_is_shown_if_a_later_comparison_does_not_fit(
    tmp_path, capsys, monkeypatch
):
    def refuse(configs, setting):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(recommend.runs, "build_models", refuse)
    code, document = bench(tmp_path)
    assert code == 0
    assert {row["part"] for row in document["rows"]} == {"op"}
    assert document["conditions"]["times"].endswith("out of memory")
    assert "op: bias_gelu" in capsys.readouterr().out


def test_a_bad_number_and_too_large_a_batch_are_one_line(capsys):
    for arguments, message in (
        (["--batch-size", "0"], "--batch-size must be positive, got 0"),
        (["--batch-size", "99999999999"], "--batch-size must fit into memory"),
        (["--json", "."], "output must be a file, got the folder ."),
    ):
        assert main([*TINY, *arguments]) == 2
        assert message in capsys.readouterr().err


def row(variant, *seconds, peak=None, batch_size=1):
    return Row("model", "variants", variant, batch_size, measurement=Measurement(seconds, peak))


class TestFastest:
    def test_within_a_few_percent_all_are_marked(self):
        rows = [row("a", 1.02, 1.02), row("b", 1.0, 1.0), row("c", 1.1, 1.1), row("d")]
        assert [r.variant for r in fastest(rows)] == ["b", "a"]

    def test_time_counts_per_clip(self):
        small, large = row("batch 1", 1.0, 1.0), row("batch 4", 2.0, 2.0, batch_size=4)
        assert fastest([small, large]) == [large]
        assert large.times_faster(small) == (2, 2, 2)

    def test_nothing_ran(self):
        assert fastest([row("a")]) == []

    def test_it_is_marked_in_the_text(self):
        found = Comparisons(FORWARD)
        found.rows["model", "variants"] = [row("a", 2.0), row("b", 1.0)]
        marked = [line.split()[0] for line in found.text().splitlines() if "fastest" in line]
        assert marked == ["b"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ({"sdpa": 2.0, "cpu": 1.0}, "auto takes cpu, the fastest here"),
        ({"sdpa": 1.0, "cpu": 1.5}, "auto takes cpu, but sdpa is 1.50 times as fast here"),
        ({"cpu": 1.0}, "auto takes cpu; nothing was compared with it"),
        ({"sdpa": 1.0}, "auto takes cpu; nothing was compared with it"),
    ],
)
def test_what_is_said_of_auto(seconds, said):
    found = Comparisons(FORWARD, taken={"x": "cpu"})
    found.rows["op", "x"] = [row(name, value, value) for name, value in seconds.items()]
    assert found.verdicts() == {"x": said}


def chosen(setting, rows, monkeypatch):
    """What is taken if the models were measured so."""
    found = Comparisons(setting, taken={"bottleneck_attention": "sdpa"})

    def add(self, entries, deadline):
        measured = {r.variant: r.measurement for r in rows}
        self.rows["model", "variants"] = [
            replace(r, measurement=measured.get(r.variant, Measurement())) for r in entries
        ]

    monkeypatch.setattr(Comparisons, "add", add)
    monkeypatch.setattr(recommend, "choose_dtype", lambda *given: (torch.bfloat16, "made up"))
    models = recommend.Models(config_for("mbt_tiny"), setting)
    return recommend.compare_models(found, models, Deadline(0), any_dtype=True)


def test_the_fastest_is_taken(monkeypatch):
    rows = [row("sdpa", 1.0, peak=1), row("auto", 0.8, peak=9), row("auto, bfloat16", 0.7, peak=9)]
    assert chosen(FORWARD, rows, monkeypatch) == Variant("auto", torch.bfloat16)


def test_of_the_fastest_the_one_with_the_least_memory_is_taken(monkeypatch):
    rows = [
        row("sdpa, recompute none", 1.0, peak=10),
        row("auto, recompute norms", 1.01, peak=6),
        row("auto, recompute mlp", 1.3, peak=4),
    ]
    assert chosen(TRAIN, rows, monkeypatch) == Variant("auto", torch.float32)


def test_where_the_time_is_short_every_variant_has_a_round_before_one_has_more(clock):
    """On a CPU of 3.5 s a call bench measured stock PyTorch alone, and suggested it."""
    found, calls = Comparisons(FORWARD), {name: lambda: None for name in ("sdpa", "auto", "cls")}
    rows = [Row("model", "variants", name, 1, call) for name, call in calls.items()]
    found.add(rows, Deadline(16 * clock))
    assert [len(r.measurement.seconds) for r in found.of("model", "variants")] == [1, 1, 1]


def test_nothing_is_suggested_if_one_variant_alone_ran(monkeypatch):
    assert chosen(FORWARD, [row("sdpa", 1.0)], monkeypatch) is None


def test_bfloat16_is_not_tried_where_a_cpu_emulates_it(monkeypatch):
    """60 s were promised, and a forward in bfloat16 took minutes."""
    why = "the CPU has no bfloat16 products"
    monkeypatch.setattr(recommend, "choose_dtype", lambda *given: (torch.float32, why))
    entries = []
    monkeypatch.setattr(Comparisons, "add", lambda self, rows, deadline: entries.extend(rows))
    models = recommend.Models(config_for("mbt_tiny"), FORWARD)
    found = Comparisons(FORWARD, taken={"bottleneck_attention": "sdpa"})
    recommend.compare_models(found, models, Deadline(0), any_dtype=True)
    *others, last = entries
    assert (last.variant, last.call, last.note) == ("auto, bfloat16", None, f"not run: {why}")
    assert all(row.call and "float" not in row.variant for row in others)


def test_nothing_is_taken_if_nothing_ran(monkeypatch):
    assert chosen(FORWARD, [], monkeypatch) is None


@pytest.mark.parametrize(
    ("variant", "code"),
    [
        (Variant("auto", torch.float32), "model = model.to(torch.float32)"),
        (
            Variant("sdpa", torch.bfloat16, recompute="none", cls_only=True),
            'model = model.to(torch.bfloat16).set_backend("sdpa")'
            '.set_execution(recompute="none", cls_only=True)',
        ),
        (
            Variant("auto", torch.float16, capture=True),
            "model = model.to(torch.float16); model = model.capture(inputs)",
        ),
    ],
)
def test_the_line_of_code_takes_the_variant(variant, code):
    assert variant.code() == code


@pytest.mark.gpu
@pytest.mark.usefixtures("clock")
def test_on_a_gpu_a_capture_is_timed(tmp_path):
    _, document = bench(tmp_path, "--device", "cuda", "--batch-size", "1")
    captured = rows_of(document, "model", "variants")["auto, CLS rows only, captured"]
    assert captured["rounds"] >= 2
    assert captured["peak_mb"] > 0


def test_batch_sizes_that_do_not_fit_into_memory_are_left_out(monkeypatch):
    monkeypatch.setattr(recommend, "free_bytes", lambda device: 1)
    found = Comparisons(FORWARD)
    variant = Variant("auto", torch.float32)
    found.rows["model", "variants"] = [row("auto", 1.0, peak=100)]
    models = recommend.Models(config_for("mbt_tiny"), FORWARD)
    recommend.compare_batch_sizes(found, models, variant, [2], Deadline(300))
    assert [(r.ran, r.note) for r in found.of("model", "batch size")] == [
        (True, ""),
        (False, measurement.NO_MEMORY),
    ]


def measure(error, **options):
    def fail():
        raise error

    return measurement.measure(
        {"small": lambda: None, "large": fail}, CPU, Deadline(300), **options
    )


def test_what_does_not_fit_is_left_out_and_the_rest_goes_on():
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    found = measure(error).measured
    assert found["small"].seconds
    assert found["large"] == Measurement(why_not=measurement.NO_MEMORY)


def test_what_does_not_fit_any_more_keeps_no_time():
    calls = count()

    def grow():
        if next(calls) == 4:
            raise MemoryError

    found = measurement.measure({"small": lambda: None, "grows": grow}, CPU, Deadline(300)).measured
    assert len(found["small"].seconds) == measurement.MAX_ROUNDS
    assert found["grows"] == Measurement(why_not=measurement.NO_MEMORY)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), dispatch.BackendError("not this one")])
def test_another_error_is_not_hidden(error):
    with pytest.raises(type(error), match=str(error)):
        measure(error)
    if isinstance(error, dispatch.BackendError):
        assert measure(error, may_be_refused=True).measured["large"].why_not == str(error)
