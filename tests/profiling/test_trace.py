"""mbt-fast profile --trace: each part is named, forward and backward; nothing is left behind."""

import json
from dataclasses import replace

import pytest
import torch

from mbt_fast.cli.main import main
from mbt_fast.layers import fusion
from mbt_fast.models.registry import config_for
from mbt_fast.profiling.measure import Setting, build_models, random_inputs, step_of
from mbt_fast.profiling.trace import named_ranges
from mbt_fast.profiling.trace_backward import backward_ranges
from mbt_fast.testing import saved_bytes

TINY = ["profile", "--model", "mbt_tiny", "--seconds", "0", "--dtype", "float32", "--device", "cpu"]
OF_STREAM = ("qkv", "proj", "mlp")


def traced_names(path, *arguments):
    assert main([*TINY, "--trace", str(path), *arguments]) == 0
    events = json.loads(path.read_text())["traceEvents"]
    return [event["name"] for event in events if event.get("cat") == "user_annotation"]


def parts(layer, modalities=("rgb", "spectrogram"), attention=("attention",)):
    of_streams = {f"layer {layer} / {m} / {part}" for m in modalities for part in OF_STREAM}
    return of_streams | {
        f"layer {layer} / {part}" for part in (*attention, "residual, shared slots")
    }


def test_every_part_of_every_layer_has_a_range(tmp_path):
    names = set(traced_names(tmp_path / "t.json"))
    expected = {"embed / rgb", "embed / spectrogram", "norm", "head"}
    for layer in range(4):
        expected |= {f"layer {layer}", *parts(layer)}
    assert names == expected


def test_every_part_of_the_backward_has_a_range(tmp_path):
    names = set(traced_names(tmp_path / "t.json", "--mode", "train"))
    backward = {name.removeprefix("backward: ") for name in names if name.startswith("backward")}
    for layer in range(4):
        assert parts(layer) <= backward
    assert {"embed / rgb", "embed / spectrogram", "norm", "head", "loss"} <= backward


def test_pairwise_attention_belongs_to_its_stream(tmp_path):
    names = traced_names(tmp_path / "t.json", "--fusions", "vanilla", "--fusion-layers", "2")
    assert names.count("layer 3 / rgb / attention") == 1
    assert "layer 3 / attention" not in names
    assert "layer 1 / attention" in names


def test_joined_streams_are_called_shared(tmp_path):
    names = traced_names(tmp_path / "t.json", "--fusions", "vanilla-shared", "--fusion-layers", "2")
    assert "layer 3 / shared / mlp" in names
    assert "layer 1 / rgb / mlp" in names


def test_the_usual_fusion_layer_is_traced_if_it_is_compared(tmp_path, capsys):
    traced_names(tmp_path / "t.json", "--fusion-layers", "1", "3")
    assert "one call of bottleneck fusion at layer 1, B = 4" in capsys.readouterr().out
    traced_names(tmp_path / "t.json", "--fusion-layers", "1", "2")
    assert "one call of bottleneck fusion at layer 2, B = 4" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("fusions", ["bottleneck", "vanilla-shared"])
def test_what_a_kernel_backend_does_for_all_streams_has_a_range(fusions, mode, tmp_path):
    pytest.importorskip("mbt_fast._C", reason="the C++ kernels are not built")
    call = ("--backend", "cpu", "--fusions", fusions, "--fusion-layers", "2", "--mode", mode)
    names = set(traced_names(tmp_path / "t.json", *call))
    of_each = ("shared",) if fusions == "vanilla-shared" else ("rgb", "spectrogram")
    expected = {"layer 1 / qkv", "layer 1 / attention", "layer 1 / mlp"}
    assert expected | {f"layer 1 / {m} / proj" for m in of_each} <= names
    if mode == "train":
        assert {f"backward: {name}" for name in expected} <= names


@pytest.mark.gpu
def test_kernels_are_traced_on_a_gpu(tmp_path):
    path = tmp_path / "t.json"
    assert main([*TINY[:-1], "cuda", "--mode", "train", "--trace", str(path)]) == 0
    events = json.loads(path.read_text())["traceEvents"]
    assert any(event.get("cat") == "kernel" for event in events)
    names = {event["name"] for event in events if event.get("cat") == "user_annotation"}
    assert {"layer 3 / rgb / mlp", "backward: layer 3 / rgb / mlp"} <= names


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_tracing_changes_no_result_and_leaves_nothing_behind(mode):
    config = replace(config_for("mbt_tiny"), stochastic_depth=0.5)
    setting = Setting(mode, 2, torch.device("cpu"), torch.float32, "auto")
    (model,) = build_models([config], setting)
    inputs = random_inputs(config, setting)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    functions = dict(vars(fusion))
    torch.manual_seed(1)
    plain = model(inputs)
    with named_ranges(model):
        torch.manual_seed(1)
        traced = model(inputs)
    assert torch.equal(plain, traced)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert vars(fusion) == functions


def test_a_failing_call_leaves_nothing_behind():
    config = config_for("mbt_tiny")
    setting = Setting("forward", 1, torch.device("cpu"), torch.float32, "auto")
    (model,) = build_models([config], setting)
    attention = fusion.bottleneck_attention
    with pytest.raises(ValueError, match="at least one modality"), named_ranges(model):
        model({})
    assert fusion.bottleneck_attention is attention
    assert "forward" not in vars(model.layers[0])


def test_ranges_do_not_hide_that_a_module_is_plain():
    """A block whose parts count as replaced would compute, and save, something else."""
    config = config_for("mbt_tiny")
    setting = Setting("train", 1, torch.device("cpu"), torch.float32, "auto")
    (model,) = build_models([config], setting)
    step = step_of(model, random_inputs(config, setting), setting)
    plain = saved_bytes(lambda: model(step.inputs), model.parameters())
    with named_ranges(model):
        assert saved_bytes(lambda: model(step.inputs), model.parameters()) == plain


def test_backward_nodes_are_named_by_the_operator_that_made_them():
    def event(name, cat, ts, dur, number=None, forward_thread=0):
        sequence = {} if number is None else {"Sequence number": number}
        args = {**sequence, "Fwd thread id": forward_thread}
        place = {"pid": 1, "tid": 1, "ts": ts, "dur": dur}
        return {"ph": "X", "name": name, "cat": cat, **place, "args": args}

    node = "autograd::engine::evaluate_function: "
    events = [
        event("layer 0", "user_annotation", 0, 100),
        event("layer 0 / mlp", "user_annotation", 10, 20),
        event("aten::mm", "cpu_op", 12, 3, number=0),
        event("aten::view", "cpu_op", 50, 3, number=1),  # makes no node,
        event("aten::add", "cpu_op", 60, 3, number=1),  # so that this has the same number
        event("aten::sum", "cpu_op", 150, 3, number=2),
        event(f"{node}SumBackward0", "cpu_op", 200, 5, 2, 1),
        event(f"{node}AddBackward0", "cpu_op", 210, 5, 1, 1),
        event(f"{node}MmBackward0", "cpu_op", 220, 5, 0, 1),
        event(f"{node}torch::autograd::AccumulateGrad", "cpu_op", 230, 5, None, 1),
    ]
    found = [(e["name"], e["ts"], e["dur"]) for e in backward_ranges(events)]
    assert found == [
        ("backward: loss", 200, 5),
        ("backward: layer 0", 210, 5),
        ("backward: layer 0 / mlp", 220, 15),
    ]
