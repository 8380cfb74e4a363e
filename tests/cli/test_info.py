"""mbt-fast info: text and JSON, with and without the compiled parts."""

import importlib.util
import json
import sys

import pytest
import torch

from mbt_fast import __version__
from mbt_fast.cli import info
from mbt_fast.cli.main import main
from mbt_fast.ops import dispatch


def test_info_names_every_backend_and_what_no_hardware_has_run(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for row in dispatch.BACKENDS:
        assert f"  {row.name} " in out
    assert torch.__version__ in out
    assert "  amx          never run on a CPU with AMX" in out


def test_info_as_json_has_the_facts_of_the_text(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == info.collect()
    assert facts["mbt_fast"] == __version__
    assert facts["backends"]["sdpa"] == "yes"
    assert "cpu" in facts["devices"]
    assert main(["info"]) == 0
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


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out.strip() == __version__
