"""mbt-fast info: text and JSON, with and without the compiled parts."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from mbt_fast import __version__
from mbt_fast.cli import info
from mbt_fast.cli.main import main
from mbt_fast.ops import dispatch, extension


def test_info_names_every_backend_on_one_screen(monkeypatch, capsys):
    """It had 65 lines, most of them registers of CUDA kernels on a machine without a GPU."""
    kernels = {f"kernel {number} float16 64": (168, 0, 0) for number in range(24)}
    built = {"compiler": "release 13.0", "architectures": "sm_90a", "sources": "0" * 64}
    module = SimpleNamespace(ptxas=kernels, ptxas_warnings=[], shared_memory={}, **built)
    monkeypatch.setattr(extension, "why_no_cuda_kernels", list)
    monkeypatch.setattr(extension, "cuda_module", lambda: module)
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for row in dispatch.BACKENDS:
        assert f"  {row.name} " in out
    assert f"torch: {torch.__version__}\n" in out
    assert "cuda part: for sm_90a, release 13.0\n" in out
    assert "kernels verified on a GPU: none of 5\n" in out
    assert len(out.splitlines()) <= 24
    assert "registers" not in out


def test_verbose_info_has_what_no_hardware_has_run(capsys):
    assert main(["info", "--verbose"]) == 0
    assert "  amx          never run on a CPU with AMX" in capsys.readouterr().out


def test_packages_that_are_not_installed_are_named(monkeypatch, capsys):
    def version(name):
        if name == "av":
            raise info.importlib.metadata.PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(info.importlib.metadata, "version", version)
    assert main(["info"]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("packages"))
    assert line.startswith("packages: triton 1.2, numpy 1.2, ")
    assert line.endswith("; not installed: av")


def test_info_as_json_has_the_facts_of_the_text(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == info.collect()
    assert facts["mbt_fast"] == __version__
    assert facts["backends"]["sdpa"] == "yes"
    assert "cpu" in facts["devices"]
    assert main(["info", "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines if line[0] != " "] == list(facts)


@pytest.mark.parametrize(
    ("module", "part"), [("mbt_fast._C", "compiled part"), ("mbt_fast._cuda", "cuda part")]
)
def test_info_says_which_compiled_part_is_not_built(monkeypatch, capsys, module, part):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    facts = info.collect()
    assert facts[part].startswith(f"{module} is not built: ")
    if module == "mbt_fast._cuda":
        assert facts["kernels verified on a GPU"]["cuda"] == "no: not built"
    assert main(["info"]) == 0
    assert f"{part}: {facts[part]}\n" in capsys.readouterr().out


@pytest.mark.skipif(
    importlib.util.find_spec("mbt_fast._cuda") is None, reason="mbt_fast._cuda is not built"
)
def test_info_says_where_the_cuda_kernels_have_run(monkeypatch):
    def verified(*records):
        monkeypatch.setattr(info.sources, "verifications", lambda kernel, digest: list(records))
        return info.collect()["kernels verified on a GPU"]["cuda"]

    assert verified() == "no: the present source has never run on a GPU"
    record = {"device": "H100", "date": "2026-01-31", "cuda": "13.0"}
    monkeypatch.setattr(info.sources, "KERNELS", {})
    assert verified(record) == "H100, 2026-01-31, Cuda 13.0"


def test_predicted_speeds_are_called_that():
    predicted = info.collect()["attention, predicted"]
    passes = {f"{row} {way}" for row in ("cuda", "triton") for way in ("forward", "backward")}
    assert set(predicted) == passes
    assert all("TFLOP/s at 1573 rows" in said for said in predicted.values())
    assert all(said.endswith("from machine code, not measured)") for said in predicted.values())


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out.strip() == __version__
