"""The wheel: what is in it with a compiler, and what it says without one."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ["mbt_fast", "kernels", "csrc", "setup.py", "pyproject.toml", "README.md", "LICENSE"]


@pytest.fixture
def source(tmp_path):
    """A copy of the sources, so that a build leaves nothing in the checkout."""
    copy = tmp_path / "source"
    copy.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / part, copy / part, ignore=ignore)
        else:
            shutil.copy(ROOT / part, copy)
    return copy


def build(source, **environment):
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps"]
    return subprocess.run(
        [*command, "-w", source / "dist", source],
        env={**os.environ, "MBT_FAST_CUDA": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def unpack(source):
    (wheel,) = (source / "dist").glob("*.whl")
    site = source / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        return site, archive.namelist()


def run(site, code):
    """Run ``code`` with the unpacked wheel, out of sight of an editable install."""
    start = f"""
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "ditable" not in str(finder)]
sys.path.insert(0, {str(site)!r})
"""
    command = [sys.executable, "-P", "-c", start + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=site.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_with_a_compiler(source):
    done = build(source, MBT_FAST_NATIVE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    site, names = unpack(source)
    packages = {name.rpartition("/")[0] for name in names if name.endswith(".py")}
    folders = {
        "/".join(("mbt_fast", *path.parent.relative_to(ROOT / "mbt_fast").parts))
        for path in (ROOT / "mbt_fast").rglob("*.py")
    }
    assert packages == folders | {"mbt_fast/kernels"}
    assert {"mbt_fast/py.typed", "mbt_fast/kernels/verified.json"} <= set(names)
    assert any(name.startswith("mbt_fast/_C.") for name in names)
    assert not any("tests" in name or name.startswith("kernels") for name in names)
    (wheel,) = (source / "dist").glob("*.whl")
    assert wheel.stat().st_size < 2**20
    code = "import mbt_fast.native as n; print(n.__file__, n.why_missing(), n.cpu_features())"
    out = run(site, code)
    assert str(site) in out
    assert "[]" in out
    assert "avx2_fma" in out


def test_wheel_without_a_compiler_says_what_is_missing(source):
    done = build(source, CXX="no-such-compiler")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "no C++ compiler is found; install g++ or clang++, or set CXX" in done.stdout + done.stderr
    )
    site, names = unpack(source)
    assert not any("_C." in name for name in names)
    code = "from mbt_fast.cli.main import main; main(['info'])"
    assert "mbt_fast._C is not built" in run(site, code)


BROKEN_COMPILER = """#!/bin/sh
echo "bindings.cpp:3:10: fatal error: Python.h: No such file or directory"
exit 1
"""
REASON = "fatal error: Python.h: No such file or directory; install Python's headers"


@pytest.fixture
def broken_compiler(tmp_path):
    """A compiler that is found, and fails as one without Python's headers does."""
    path = tmp_path / "broken-c++"
    path.write_text(BROKEN_COMPILER)
    path.chmod(0o755)
    return str(path)


def test_a_compiler_that_fails_is_no_reason_not_to_install(source, broken_compiler):
    done = build(source, CXX=broken_compiler, MBT_FAST_NATIVE="auto")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert f"mbt_fast: building without mbt_fast._C: {broken_compiler} failed: " in output
    assert REASON in output
    site, names = unpack(source)
    assert not any("_C." in name for name in names)
    assert "mbt_fast._C is not built" in run(
        site, "import mbt_fast.native as n; print(n.why_missing())"
    )


def test_a_compiler_that_fails_fails_a_build_that_must_compile(source, broken_compiler):
    done = build(source, CXX=broken_compiler, MBT_FAST_NATIVE="1")
    assert done.returncode != 0
    assert REASON in done.stdout + done.stderr


def test_a_build_that_must_compile_fails_with_the_reason(source):
    done = build(source, CXX="no-such-compiler", MBT_FAST_NATIVE="1")
    assert done.returncode != 0
    assert "MBT_FAST_NATIVE=1, but no C++ compiler is found" in done.stdout + done.stderr


@pytest.fixture
def broken_nvcc(tmp_path):
    """CUDA_HOME with an nvcc that is found, and fails as a linker without a static cudart does."""
    path = tmp_path / "cuda" / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text('#!/bin/sh\necho "error: cannot find -lcudart_static" >&2\nexit 1\n')
    path.chmod(0o755)
    return str(tmp_path / "cuda")


def test_an_nvcc_that_fails_leaves_the_cpu_kernels(source, broken_nvcc):
    done = build(source, CUDA_HOME=broken_nvcc, MBT_FAST_CUDA="auto")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "mbt_fast: building without mbt_fast._cuda: " in output
    assert "nvcc failed: error: cannot find -lcudart_static" in output
    site, names = unpack(source)
    assert any(name.startswith("mbt_fast/_C.") for name in names)
    assert not any("_cuda." in name for name in names)
    assert "mbt_fast._cuda is not built" in run(
        site, "import mbt_fast.native as n; print(n.why_no_cuda_kernels())"
    )


def test_a_build_that_must_have_cuda_fails_with_the_reason(source, tmp_path):
    done = build(source, CUDA_HOME=str(tmp_path), MBT_FAST_CUDA="1", MBT_FAST_NATIVE="0")
    assert done.returncode != 0
    assert "MBT_FAST_CUDA=1, but nvcc is not found" in done.stdout + done.stderr
