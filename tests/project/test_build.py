"""The wheels: what is in them, and what a build says that leaves something out."""

import os
import shutil
import subprocess
import sys
import zipfile
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ["mbt_fast", "kernels", "csrc", "setup.py", "pyproject.toml", "README.md", "LICENSE"]
PIP_WHEEL = ["-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "-w", "dist", "."]
BUILD = ["setup.py", "build_ext", "--build-lib", "built", "--build-temp", "built"]
WITHOUT = {"MBT_FAST_NATIVE": "0", "MBT_FAST_CUDA": "0"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the sources, so that a build leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("build") / "source"
    copy.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / part, copy / part, ignore=ignore)
        else:
            shutil.copy(ROOT / part, copy)
    return copy


def fails(path, message):
    """A program that is found, and fails with a message."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{message}'\nexit 1\n")
    path.chmod(0o755)
    return str(path)


def run(source, command, **environment):
    """The exit code and the output of a Python command among the sources."""
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=source,
    )
    return done.returncode, done.stdout


class Wheel:
    """A wheel that was built, and unpacked into ``site``; ``output`` is what its build said."""

    def __init__(self, source, site, **environment):
        shutil.rmtree(source / "dist", ignore_errors=True)
        code, self.output = run(source, PIP_WHEEL, **environment)
        assert code == 0, self.output
        (self.path,) = (source / "dist").glob("*.whl")
        self.name, self.size, self.site = self.path.name, self.path.stat().st_size, site
        with zipfile.ZipFile(self.path) as archive:
            archive.extractall(site)
            self.files = set(archive.namelist())

    @cached_property
    def backends(self):
        """What the installed wheel says of every backend, out of sight of an editable install."""
        code = f"""
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "ditable" not in str(finder)]
sys.path.insert(0, {str(self.site)!r})
import mbt_fast
assert mbt_fast.__file__.startswith({str(self.site)!r})
print(mbt_fast.dispatch.explain())
"""
        status, output = run(self.site, ["-P", "-c", code])
        assert status == 0, output
        return {line.split()[0]: line for line in output.splitlines()}


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """A wheel with the C++ kernels; nvcc is found, and fails as without a static cudart."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        pytest.skip(f"the wheel needs a C++ compiler, and {compiler!r} is not found")
    folder = tmp_path_factory.mktemp("kernels")
    fails(folder / "cuda/bin/nvcc", "error: cannot find -lcudart_static")
    environment = {"CUDA_HOME": str(folder / "cuda"), "MBT_FAST_CUDA": "auto"}
    return Wheel(source, folder / "site", MBT_FAST_NATIVE="1", **environment)


@pytest.fixture(scope="module")
def pure_wheel(source, tmp_path_factory):
    return Wheel(source, tmp_path_factory.mktemp("pure") / "site", **WITHOUT)


def test_a_wheel_has_the_whole_package_and_nothing_else(wheel):
    packages = {name.rpartition("/")[0] for name in wheel.files if name.endswith(".py")}
    folders = {path.parent for path in (ROOT / "mbt_fast").rglob("*.py")}
    assert packages == {str(f.relative_to(ROOT)) for f in folders} | {"mbt_fast/kernels"}
    kernels = {"kernels/predicted.json", "kernels/verified.json"}
    data = {"py.typed", *kernels, "train/recipes/vggsound.toml"}
    data.add("parallel/machines/h100.toml")
    assert {f"mbt_fast/{name}" for name in data} <= wheel.files
    assert {name.partition("/")[0].partition("-")[0] for name in wheel.files} <= {"mbt_fast"}
    assert wheel.size < 3 * 2**19


def test_a_wheel_with_kernels_runs_them(wheel):
    assert any(name.startswith("mbt_fast/_C.") for name in wheel.files)
    assert "not built" not in wheel.backends["cpu"]


def test_an_extension_links_no_torch_library(wheel):
    (extension,) = wheel.site.glob("mbt_fast/_C.*")
    linked = subprocess.run(["ldd", extension], capture_output=True, text=True, check=True).stdout
    assert "libgomp" in linked
    assert not [name for name in ("torch", "c10", "cudart") if name in linked]


def test_an_nvcc_that_fails_leaves_the_cpu_kernels(wheel):
    assert "mbt_fast: building without mbt_fast._cuda: " in wheel.output
    assert "nvcc failed: error: cannot find -lcudart_static" in wheel.output
    assert not any("_cuda." in name and name.endswith(".so") for name in wheel.files)
    said = "mbt_fast._cuda is not built: "
    assert said in wheel.backends["cuda"]
    assert "nvcc failed: error: cannot find -lcudart_static (when " in wheel.backends["cuda"]


def test_a_wheel_without_extensions_is_for_every_platform(pure_wheel):
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    assert not any(name.endswith(".so") for name in pure_wheel.files)
    said = "mbt_fast._C is not built: MBT_FAST_NATIVE=0 (when mbt-fast was built; "
    assert said in pure_wheel.backends["cpu"]


@pytest.mark.parametrize("demanded", ["auto", "1"])
def test_a_compiler_that_fails_is_named_with_its_reason(source, tmp_path, demanded):
    """As it does without Python's headers. Only a build that must have the kernels fails."""
    error = "bindings.cpp:3:10: fatal error: Python.h: No such file or directory"
    compiler = fails(tmp_path / "c++", error)
    environment = {"CXX": compiler, "MBT_FAST_NATIVE": demanded, "MBT_FAST_CUDA": "0"}
    code, output = run(source, BUILD, **environment)
    assert bool(code) == (demanded == "1")
    assert f"{compiler} failed: {error}; install Python's headers" in output
    assert ("mbt_fast: building without mbt_fast._C: " in output) == (demanded == "auto")


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("scratch.hpp:4:10: fatal error: omp.h file not found", "omp.h file not found"),
        (
            "/usr/bin/ld: cannot find -lomp\nclang: error: linker command failed",
            "cannot find -lomp",
        ),
    ],
)
def test_clang_without_openmp_is_named_and_not_hidden(source, tmp_path, says, reason):
    """It was said that there was no compiler, and the linker's reason was not shown."""
    compiler = fails(tmp_path / "clang++", says)
    environment = {"CXX": compiler, "MBT_FAST_NATIVE": "auto", "MBT_FAST_CUDA": "0"}
    _, output = run(source, BUILD, **environment)
    said = output.partition("building without mbt_fast._C: ")[2].splitlines()[0]
    assert f"{compiler} failed: " in said
    assert reason in said
    assert said.endswith("install OpenMP for clang (libomp-dev or libomp-devel), or set CXX=g++")
    (note,) = (source / "built").rglob("_C.not-built")
    assert note.read_text() == said


@pytest.mark.parametrize(
    ("version", "known"), [("Debian clang version 14.0.6", False), ("g++ 12.2.0", True)]
)
def test_clang_gets_no_warning_option_that_it_does_not_know(source, tmp_path, version, known):
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\n[ $1 = --version ] && echo {version} && exit\nexit 1\n")
    compiler.chmod(0o755)
    environment = {"CXX": str(compiler), "MBT_FAST_NATIVE": "auto", "MBT_FAST_CUDA": "0"}
    _, output = run(source, BUILD, **environment)
    assert "-Wextra" in output
    assert ("-Wno-maybe-uninitialized" in output) == known


NO_COMPILER = "no C++ compiler is found; install g++ or clang++, or set CXX"
NO_NVCC = "nvcc is not found; install the CUDA toolkit, or set CUDA_HOME"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CXX": "no-such-compiler"}, f"building without mbt_fast._C: {NO_COMPILER}"),
        ({"CXX": "no-such-compiler", "MBT_FAST_NATIVE": "1"}, f"NATIVE=1, but {NO_COMPILER}"),
        ({"CUDA_HOME": "/no-such-folder"}, f"building without mbt_fast._cuda: {NO_NVCC}"),
        ({"CUDA_HOME": "/no-such-folder", "MBT_FAST_CUDA": "1"}, f"CUDA=1, but {NO_NVCC}"),
    ],
)
def test_what_is_missing_is_named(source, environment, message):
    code, output = run(source, ["setup.py", "--name"], **environment)
    assert bool(code) == ("but" in message)
    assert message in output
