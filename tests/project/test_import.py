"""Importing is light: torch alone, no optional package, no device, nothing compiled."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FIRST_IMPORT = Path(__file__).with_name("first_import.py")
OPTIONAL = ("av", "jinja2", "matplotlib", "msgpack", "safetensors", "tabulate", "tqdm", "triton")
FLOPS = 6 * 5 * 5 * 16  # two products for the output, one more for the log-sum-exp


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The report of one fresh process, in which optional packages refuse to be imported."""
    folder = tmp_path_factory.mktemp("refusing")
    for name in OPTIONAL:
        (folder / f"{name}.py").write_text("raise RuntimeError('imported')")
    command = [sys.executable, "-P", FIRST_IMPORT, folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_needs_torch_alone(found):
    assert {name.partition(".")[0] for name in found["modules"]} == {"mbt_fast"}


def test_import_loads_no_extension_and_no_kernel(found):
    late = ("mbt_fast._C", "mbt_fast._cuda", "mbt_fast.kernels")
    assert not [name for name in found["modules"] if name.startswith(late)]


def test_import_touches_no_device(found):
    assert found["cuda is initialised"] is False


def test_a_forked_worker_can_call(found):
    assert found["forked worker"] is True


def test_the_first_call_may_be_compiled(found):
    assert found["compiled first call"] is True


@pytest.mark.parametrize("first", ["counter", "mbt_fast"])
def test_flops_are_counted_whichever_is_imported_first(found, first):
    assert found[f"flops, {first} first"] == FLOPS


@pytest.mark.parametrize(
    "statement", ["import kernels.tiles", "from kernels import tiles", "import kernels.layer"]
)
def test_a_submodule_of_the_folder_kernels_was_called_missing(statement):
    code = [
        sys.executable,
        "-c",
        f"import importlib.util as u; u.find_spec('kernels'); {statement}",
    ]
    done = subprocess.run(code, capture_output=True, text=True, cwd=FIRST_IMPORT.parents[2])
    assert done.returncode == 1
    assert "import 'mbt_fast.kernels' instead" in done.stderr.splitlines()[-1]
