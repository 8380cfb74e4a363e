"""mbt-fast info: text and JSON."""

import json

import pytest
import torch

from mbt_fast import __version__, dispatch
from mbt_fast.cli.main import main


def test_info_names_every_backend(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for row in dispatch.BACKENDS:
        assert f"  {row.name} " in out
    assert torch.__version__ in out


def test_info_as_json(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["mbt_fast"] == __version__
    assert facts["backends"]["sdpa"] == "yes"
    assert "cpu" in facts["devices"]


def test_info_says_which_cpu_kernels_no_hardware_has_run(capsys):
    assert main(["info"]) == 0
    assert "  amx          never run on a CPU with AMX" in capsys.readouterr().out


def test_info_says_that_the_cuda_kernels_are_unverified(capsys):
    assert main(["info"]) == 0
    (line,) = (
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("  cuda         no")
    )
    assert line.endswith(("never run on a GPU", "not built")) or "is not built" in line


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out.strip() == __version__
