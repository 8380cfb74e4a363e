"""The device that a name stands for, and what is said of one that cannot be used."""

import sys

import pytest
import torch

from mbt_fast.cli.main import main
from mbt_fast.errors import InputError
from mbt_fast.profiling import machine


def test_auto_is_a_gpu_if_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert machine.choose_device("auto").type == expected
    assert machine.choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["mps", "meta", "xpu", "hpu", "cpu:x", "cuda:", "gramophone", ""])
def test_other_devices_are_refused(name):
    with pytest.raises(InputError, match=r"^device must be auto, cpu or cuda\[:index\], got '"):
        machine.choose_device(name)


@pytest.mark.parametrize("name", ["cuda:99", "cuda:999"])
def test_a_gpu_that_is_not_there_is_named(name):
    with pytest.raises(InputError, match=rf"device must exist, got '{name}'; \d+ GPUs here"):
        machine.choose_device(name)


@pytest.mark.parametrize("error", [RuntimeError, AssertionError])
@pytest.mark.parametrize("text", ["no kernel image\nCompile with ...", ""])
def test_a_device_that_does_not_work_is_one_line(monkeypatch, error, text):
    def broken(*args, **kwargs):
        raise error(text)

    monkeypatch.setattr(torch, "zeros", broken)
    reason = text.partition("\n")[0] or error.__name__
    with pytest.raises(InputError) as caught:
        machine.choose_device("cpu")
    assert str(caught.value) == f"device cpu does not work: {reason}"


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": False}, torch.float32),
    ],
)
def test_best_precision_of_a_cpu(features, dtype, monkeypatch):
    monkeypatch.setattr(machine.extension, "why_missing", list)
    monkeypatch.setattr(machine.extension, "cpu_features", lambda: features)
    assert machine.choose_dtype("auto", torch.device("cpu"))[0] == dtype


def test_best_precision_without_the_compiled_part(monkeypatch):
    monkeypatch.setattr(machine.extension, "why_missing", lambda: ["it is not built"])
    dtype, why = machine.choose_dtype("auto", torch.device("cpu"))
    assert dtype == torch.float32
    assert "it is not built" in why


@pytest.mark.parametrize("command", [["profile"], ["predict", "clip.mp4"]])
def test_commands_refuse_a_device_in_one_line(capsys, command):
    assert main([*command, "--model", "mbt_tiny", "--device", "mps"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    expected = "mbt-fast: error: device must be auto, cpu or cuda[:index], got 'mps'\n"
    assert captured.err == expected


CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC

processor\t: 1
model name\t: another
"""


def test_a_cpu_is_told_by_family_and_model_too():
    assert machine.cpu_name(CPUINFO) == "AMD EPYC (family 25, model 17)"
    assert machine.cpu_name("processor : 0\nmodel name : Neoverse\n") == "Neoverse"
    assert machine.cpu_name("processor : 0\nCPU implementer : 0x41\n") is None


@pytest.mark.parametrize("command", ["profile", "bench"])
def test_without_the_compiled_part_one_line_says_so(monkeypatch, capsys, command):
    monkeypatch.setitem(sys.modules, "mbt_fast._C", None)  # as if it were not installed
    assert main([command, "--model", "mbt_tiny", "--device", "cpu", "--seconds", "0"]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("kernels: "))
    assert line.startswith("kernels: none, PyTorch's own functions run: mbt_fast._C is not built: ")
