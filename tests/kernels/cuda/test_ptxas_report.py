"""What ptxas warns of is recorded, shown, and keeps the kernels out of ``auto``."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from native_build import ROOT

from mbt_fast.cli import info
from mbt_fast.ops import dispatch, extension

MANGLED = "_ZN8mbt_fast4cuda31bottleneck_attention_fwd_kernelINS0_8Bfloat16ELi64EEEvNS0_1PE"
LOG = f"""ptxas info    : 0 bytes gmem
ptxas info    : (C7515) Potential Performance Loss: it is serialized in the function '{MANGLED}'
ptxas info    : Compiling entry function '{MANGLED}' for 'sm_90a'
ptxas info    : Function properties for {MANGLED}
    0 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 168 registers, used 16 barriers
"""
WARNING = (
    "C7515: Potential Performance Loss: it is serialized in the function"
    " bottleneck_attention_fwd bfloat16 64"
)


@pytest.fixture
def report():
    path = ROOT / "csrc/cuda/ptxas_report.py"
    spec = importlib.util.spec_from_file_location("ptxas_report", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(monkeypatch):
    """Puts an extension in place of ours that was built with these warnings and spills."""

    def build(warnings=(), spilled=0):
        module = SimpleNamespace(
            compiler="nvcc 12", architectures="sm_90a", sources="0", shared_memory={},
            ptxas_warnings=list(warnings), ptxas={"fwd bfloat16 64": (168, 0, spilled)},
        )  # fmt: skip
        monkeypatch.setitem(extension._LOADED, extension.CUDA_MODULE, module)
        monkeypatch.setitem(dispatch._MISSING, extension.CUDA_MODULE, [])
        return next(row for row in dispatch.BACKENDS if row.name == "cuda")

    return build


def test_report_names_number_sentence_and_kernel(report):
    assert report.warnings(LOG) == [WARNING]
    assert report.kernels(LOG) == {"bottleneck_attention_fwd bfloat16 64": (168, 0, 24)}


def test_report_prints_warnings_and_keeps_them_in_the_header(report, tmp_path, capsys):
    log, header = tmp_path / "fwd.o.log", tmp_path / "build_info.hpp"
    log.write_text(LOG + 'ptxas warning : (C7520) a "quoted" word\n')
    report.main(str(header), str(log))
    assert f"ptxas warns: {WARNING}\n" in capsys.readouterr().out
    assert f'"{WARNING}", "C7520: a \\"quoted\\" word"}};' in header.read_text()


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"warnings": [WARNING, WARNING]}, "its compiler, nvcc 12, warned C7515: another may"),
        ({"spilled": 8}, "its compiler, nvcc 12, spilled registers of fwd bfloat16 64: another"),
    ],
    ids=["serialised", "spilled"],
)
def test_slow_build_is_taken_by_name_only_though_it_was_measured(build, monkeypatch, made, reason):
    row = build()
    monkeypatch.setitem(vars(row), "unmeasured", False)
    monkeypatch.setitem(vars(row), "min_size", {"bottleneck_attention": {torch.bfloat16: 0}})
    call = dispatch.Call(
        "bottleneck_attention", torch.device("cuda"), torch.bfloat16, size=100, width=64
    )
    assert row.opt_in_reason(call) is None
    build(**made)
    assert reason in row.opt_in_reason(call)
    assert reason in row.opt_in_reason(None)


def test_info_shows_warnings(build, monkeypatch):
    build([WARNING])
    monkeypatch.setattr(extension, "why_no_cuda_kernels", list)
    facts = info.collect()
    assert facts["cuda part"]["ptxas warns"] == WARNING
    assert "warned C7515" in facts["backends"]["cuda"]
    build()
    assert info.collect()["cuda part"]["ptxas warns"] == "of nothing"
