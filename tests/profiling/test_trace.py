"""mbt-fast profile --trace: each part is named, forward and backward."""

import json

import pytest

from mbt_fast.cli.main import main
from mbt_fast.profiling.trace import backward_ranges

TINY = ["profile", "--model", "mbt_tiny", "--seconds", "0", "--dtype", "float32", "--device", "cpu"]
PARTS = {"qkv", "attention", "proj", "mlp", "residual, shared slots"}


def traced_names(path, *arguments):
    assert main([*TINY, "--trace", str(path), *arguments]) == 0
    events = json.loads(path.read_text())["traceEvents"]
    return [event["name"] for event in events if event.get("cat") == "user_annotation"]


def parts_of(layer, names):
    return {name.rpartition(" / ")[2] for name in names if name.startswith(f"layer {layer} / ")}


@pytest.mark.parametrize("fusions", ["bottleneck", "vanilla", "vanilla-shared"])
def test_every_part_has_a_range(tmp_path, fusions):
    arguments = ("--fusions", fusions, "--fusion-layers", "2")
    names = set(traced_names(tmp_path / "t.json", *arguments))
    assert {"embed / rgb", "embed / spectrogram", "norm", "head"} <= names
    for layer in range(4):
        assert parts_of(layer, names) == PARTS


@pytest.mark.parametrize("backend", ["sdpa", "cpu"])
def test_every_part_of_the_backward_has_a_range(tmp_path, backend):
    if backend == "cpu":
        pytest.importorskip("mbt_fast._C", reason="the C++ kernels are not built")
    arguments = ("--mode", "train", "--backend", backend, "--fusions", "bottleneck")
    names = set(traced_names(tmp_path / "t.json", *arguments))
    backward = {name.removeprefix("backward: ") for name in names if name.startswith("backward")}
    for layer in range(4):
        assert parts_of(layer, backward) == PARTS
    assert {"embed / rgb", "embed / spectrogram", "norm", "head", "loss"} <= backward


def test_the_usual_fusion_layer_is_traced_if_it_is_compared(tmp_path, capsys):
    traced_names(tmp_path / "t.json", "--fusion-layers", "1", "3")
    assert "one call of bottleneck fusion at layer 1, B = 4" in capsys.readouterr().out
    traced_names(tmp_path / "t.json", "--fusion-layers", "1", "2")
    assert "one call of bottleneck fusion at layer 2, B = 4" in capsys.readouterr().out


@pytest.mark.gpu
def test_kernels_are_traced_on_a_gpu(tmp_path):
    path = tmp_path / "t.json"
    assert main([*TINY[:-1], "cuda", "--mode", "train", "--trace", str(path)]) == 0
    events = json.loads(path.read_text())["traceEvents"]
    assert any(event.get("cat") == "kernel" for event in events)
    names = {event["name"] for event in events if event.get("cat") == "user_annotation"}
    assert any(name.startswith("backward: layer 3") for name in names)


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
