"""The CUDA kernels on emulated instructions: ``mbt_fast._cuda`` built by the C++ compiler alone."""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from mbt_fast import dispatch, native
from mbt_fast.cuda import arguments

ROOT = Path(__file__).parents[1]
COMPILER = shlex.split(os.environ.get("CXX", "c++"))
WARNINGS = ["-Wno-unknown-pragmas", "-Wno-psabi"]
FLAGS = ["-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden", *WARNINGS, "-x", "c++", "-c"]
SEEDS = (0, 1, 2)  # copies complete at once, as late as can be, and in any order
HAS_COMPILER = shutil.which(COMPILER[0]) is not None


def build(folder):
    """Compile the kernels' sources as C++, two at a time, and load them."""
    import pybind11

    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    sources = [*sorted((ROOT / "csrc/cuda").glob("*.cu")), ROOT / "csrc/cuda/bindings.cpp"]

    def compile_one(source):
        target = folder / f"{source.stem}.o"
        subprocess.run([*COMPILER, *FLAGS, *includes, source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    library = folder / "_cuda.so"
    subprocess.run([*COMPILER, "-shared", *objects, "-o", library], check=True)
    spec = importlib.util.spec_from_file_location("_cuda", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install(module, monkeypatch):
    """Let backend 'cuda' run on CPU tensors, by the emulation."""
    rows = [
        replace(row, device_type="cpu") if row.name == "cuda" else row for row in dispatch.BACKENDS
    ]
    monkeypatch.setattr(dispatch, "BACKENDS", tuple(rows))
    monkeypatch.setattr(arguments, "DEVICE", "cpu")
    monkeypatch.setattr(native, "cuda_module", lambda: module)
    monkeypatch.setitem(dispatch._MISSING, native.CUDA_MODULE, [])
