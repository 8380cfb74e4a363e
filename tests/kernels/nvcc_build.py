"""The CUDA extension as nvcc compiles it, with PTX in place of machine code, and without a GPU.

The host code is nvcc's too. It is linked with ``native/recording_runtime.cpp`` instead of NVIDIA's
runtime.
"""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from native_build import COMPILER, ROOT, built_once

HOME = os.environ.get("CUDA_HOME")  # as setup.py looks for it
NVCC = shutil.which("nvcc", path=os.path.join(HOME, "bin") if HOME else None)
INSTANCES = list(product(("Bfloat16", "Float16"), (64, 128)))
MACROS = {"NVCC": "nvcc", "ARCHITECTURES": "sm_90a", "SOURCES": "0"}  # text for bindings.cpp


def nvcc_flags():
    """Those of setup.py, but for what makes machine code and line numbers."""
    for line in (ROOT / "setup.py").read_text().splitlines():
        if line.startswith("CUDA_FLAGS = "):
            flags = ast.literal_eval(line.partition("=")[2].strip()).split()
            return [flag for flag in flags if flag not in ("-lineinfo", "-Xptxas", "-v")]
    raise LookupError("setup.py has no CUDA_FLAGS")


def build():
    """Path of the extension; beside it a ``*.ptx`` for each translation unit with kernels."""
    version = subprocess.run([NVCC, "--version"], capture_output=True, check=True).stdout
    return built_once("_cuda.so", (version, nvcc_flags(), COMPILER, __file__), _build)


def _build(library):
    folder = library.parent
    report = [sys.executable, ROOT / "csrc/cuda/ptxas_report.py", folder / "build_info.hpp"]
    subprocess.run(report, check=True)
    units = [("tests/kernels/native/recording_runtime.cpp", ()), ("csrc/cuda/bindings.cpp", ())]
    for source in sorted((ROOT / "csrc/cuda").rglob("*.cu")):
        path = str(source.relative_to(ROOT))
        is_template = source.stem.endswith(("_fwd", "_bwd"))
        units += [(path, instance) for instance in INSTANCES] if is_template else [(path, ())]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda unit: _compile(folder, *unit), units))
    unfinished = library.with_suffix(".unfinished")
    subprocess.run([*COMPILER, "-shared", *objects, "-o", unfinished], check=True)
    unfinished.rename(library)


def _compile(folder, source, instance):
    """An object, and its PTX beside it."""
    import pybind11

    name = "_".join([Path(source).stem, *map(str, instance)])
    target, kept = folder / f"{name}.o", folder / name
    kept.mkdir()
    defined = dict(zip(("ELEMENT", "DIM"), instance, strict=False))  # most units define nothing
    options = [f"-DMBT_FAST_{key}={value}" for key, value in defined.items()]
    if source.endswith(".cpp"):
        folders = (folder, ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include"))
        options += [f"-I{path}" for path in folders]
        options += [f'-DMBT_FAST_{key}="{value}"' for key, value in MACROS.items()]
    subprocess.run(
        [NVCC, *nvcc_flags(), "-ccbin", COMPILER[0], "-gencode=arch=compute_90a,code=compute_90a",
         *options, "-keep", "-keep-dir", kept, "-c", ROOT / source, "-o", target],
        check=True,
    )  # fmt: skip
    for path in kept.glob("*.ptx"):
        path.rename(target.with_suffix(".ptx"))
    shutil.rmtree(kept)
    return target
