"""The compiled part: it detects what the operating system reports; a broken one is explained."""

import importlib.machinery
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from mbt_fast.ops import extension

CPUINFO = Path("/proc/cpuinfo")
FLAGS = {
    "avx2_fma": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx512_bf16": {"avx512_bf16"},
    "amx_bf16": {"amx_tile", "amx_bf16"},
}

built = pytest.mark.skipif(
    bool(extension.why_missing()), reason="; ".join(extension.why_missing()) or "-"
)


@built
@pytest.mark.skipif(not CPUINFO.exists(), reason="no /proc/cpuinfo on this system")
def test_features_are_those_that_linux_reports():
    lines = [line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")]
    if not lines:
        pytest.skip("/proc/cpuinfo has no flags: not an x86 CPU")
    reported = set(lines[0].split(":", 1)[1].split())
    expected = {name: needed <= reported for name, needed in FLAGS.items()}
    found = extension.cpu_features()
    assert set(found) == set(FLAGS)
    found["amx_bf16"] |= expected["amx_bf16"]  # the permission to use it may be refused
    assert found == expected


@built
def test_compiler_is_named():
    assert extension.compiler()


def test_missing_and_broken_extensions_are_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(extension.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(extension, "PACKAGE", tmp_path)
    assert "install g++ or clang++" in extension.why_missing()[0]
    (tmp_path / "_C.not-built").write_text("clang++ failed: no omp.h")
    assert extension.why_missing()[0].startswith(
        "mbt_fast._C is not built: clang++ failed: no omp.h (when mbt-fast was built; "
    )
    monkeypatch.undo()
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"not a library")

    def load(name):
        loader = importlib.machinery.ExtensionFileLoader(name, str(broken))
        spec = importlib.util.spec_from_file_location(name, broken, loader=loader)
        return importlib.util.module_from_spec(spec)

    monkeypatch.setattr(extension.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(extension.importlib, "import_module", load)
    (reason,) = extension.why_missing()
    assert reason.startswith("mbt_fast._C is installed but fails to load: ")
    assert extension.cpu_features() == {}
    (reason,) = extension.why_no_cuda_kernels()
    assert reason.startswith("mbt_fast._cuda is installed but fails to load: ")


def test_kernels_that_have_never_run_are_taken_by_name_only(monkeypatch):
    machine = SimpleNamespace(instruction_sets=lambda: ["amx", "avx512_bf16", "avx512"])
    monkeypatch.delenv("MBT_FAST_CPU", raising=False)
    monkeypatch.setitem(extension._LOADED, extension.MODULE, machine)
    monkeypatch.setattr(extension, "_USABLE", [])
    assert extension.instruction_set() == "avx512_bf16"
    assert "MBT_FAST_CPU=amx" in extension.why_not_in_bfloat16()
    monkeypatch.setenv("MBT_FAST_CPU", "amx")
    assert extension.instruction_set() == "amx"
    assert extension.why_not_in_bfloat16() is None
