"""An exported model runs where this library is not installed."""

import subprocess
import sys

import pytest
import torch
from model_cases import int32, random_inputs, tiny
from torch import nn

from mbt_fast import export, fuse

SMALL = {"num_layers": 2, "fusion_layer": 1}
FUSIONS = {"bottleneck": {}, "vanilla": {"fusion": "vanilla"}, "CLS rows": {}}
LENGTHS = {"no padding": None, "padding": {"spectrogram": int32(5, 0, 9)}}

# What a machine without the library does: no import of it succeeds.
ELSEWHERE = """
import sys
sys.modules["mbt_fast"] = None
import torch
program, inputs, lengths, expected = sys.argv[1], *torch.load(sys.argv[2])
out = torch.export.load(program).module()(inputs, lengths)
assert torch.allclose(out, expected), (out - expected).abs().max()
"""


def small(**overrides):
    return tiny(**SMALL, **overrides).float()


def inputs_of(batch):
    return random_inputs(batch, torch.float32)


def repeated(lengths, times):
    return lengths and {m: length.repeat(times) for m, length in lengths.items()}


def run(program, inputs, lengths):
    return program.module()(inputs) if lengths is None else program.module()(inputs, lengths)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_a_program_holds_no_operator_of_ours_and_takes_any_batch(fusion, lengths):
    model = small(**FUSIONS[fusion]).set_execution(cls_only=fusion == "CLS rows")
    program = export(model, inputs_of(3), lengths)
    called = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert not {name for name in called if "mbt_fast" in name}
    inputs, lengths = inputs_of(6), repeated(lengths, 2)
    expected = model.set_backend("sdpa")(inputs, lengths)
    torch.testing.assert_close(run(program, inputs, lengths), expected)


def test_lengths_of_none_could_not_be_exported():
    model, inputs = small(), inputs_of(3)
    program = export(model, inputs, {"rgb": None, "spectrogram": int32(5, 0, 9)})
    lengths = {"spectrogram": int32(0, 9, 5)}
    expected = model.set_backend("sdpa")(inputs, lengths)
    torch.testing.assert_close(program.module()(inputs, lengths), expected)


def test_a_program_of_one_example_takes_any_batch():
    model, inputs = small(), inputs_of(3)
    program = export(model, {m: x[:1] for m, x in inputs.items()})
    torch.testing.assert_close(program.module()(inputs), model.set_backend("sdpa")(inputs))


def test_a_program_of_fused_towers():
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, norm_first=True, batch_first=True)
    towers = {m: nn.TransformerEncoder(layer, 2, enable_nested_tensor=False) for m in ("a", "b")}
    model = fuse(towers, 1, 2).eval()
    program = export(model, {m: torch.randn(2, 5, 32) for m in towers}, {"a": int32(5, 3)})
    inputs, lengths = {m: torch.randn(3, 5, 32) for m in towers}, {"a": int32(0, 5, 2)}
    expected = model.set_backend("sdpa")(inputs, lengths)
    torch.testing.assert_close(program.module()(inputs, lengths), expected)


def test_exporting_leaves_the_backend_and_refuses_training():
    model = small().set_backend("reference")
    export(model, inputs_of(2))
    assert {layer.chosen_backend for layer in model.layers} == {"reference"}
    with pytest.raises(RuntimeError, match="must be in evaluation mode"):
        export(model.train(), inputs_of(2))
    with pytest.raises(ValueError, match=r"inputs\['rgb'\] must have shape"):
        export(model.eval(), {"rgb": inputs_of(2)["rgb"][:, :2]})


def test_a_saved_program_could_not_be_loaded_without_the_library(tmp_path):
    """Its operators were ours, and unknown there."""
    model, inputs, lengths = small(), inputs_of(2), {"spectrogram": int32(9, 0)}
    program = export(model, inputs, lengths)
    torch.export.save(program, tmp_path / "model.pt2")
    expected = model.set_backend("sdpa")(inputs, lengths).detach()
    torch.save((inputs, lengths, expected), tmp_path / "case.pt")
    command = [sys.executable, "-c", ELSEWHERE, tmp_path / "model.pt2", tmp_path / "case.pt"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_onnx(lengths, tmp_path):
    for name in ("onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extra 'examples' is not installed")
    import onnxruntime

    model = small()
    torch.onnx.export(export(model, inputs_of(3), lengths), verbose=False).save(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    inputs, lengths = inputs_of(6), repeated(lengths, 2)
    fed = [*inputs.values(), *(lengths or {}).values()]
    names = [entry.name for entry in session.get_inputs()]
    (actual,) = session.run(None, {n: x.numpy() for n, x in zip(names, fed, strict=True)})
    torch.testing.assert_close(torch.from_numpy(actual), model(inputs, lengths).detach())
