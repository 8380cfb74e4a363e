"""The CUDA kernels in tests: on a GPU, or else on emulated instructions.

The latter is ``mbt_fast._cuda`` built by the C++ compiler alone.
"""

import importlib.util
import shutil
import sysconfig
from itertools import product

import pytest
import torch
from attention_cases import DEVICE, Case
from native_build import COMPILER, ROOT, shared_library

from mbt_fast.ops import cuda, dispatch, extension

FLAGS = ["-O2", "-fvisibility=hidden", "-Wno-unknown-pragmas", "-Wno-psabi"]
SEEDS = (0, 1, 2)  # copies complete at once, as late as can be, and in any order
ON_GPU = DEVICE.type == "cuda"


def why_not():
    """Reasons why the kernels cannot run here."""
    if not ON_GPU:
        return [] if shutil.which(COMPILER[0]) else ["no C++ compiler"]
    if torch.cuda.get_device_capability()[0] != 9:
        return ["the GPU is no Hopper"]
    return extension.why_no_cuda_kernels()


skip_without = pytest.mark.skipif(bool(why_not()), reason="; ".join(why_not()) or "-")

CASES = {
    "one-row": Case(1, (1,), 0, 1, 64),
    "two-heads-of-70": Case(1, (66,), 4, 2, 64),  # a second warp group with 6 rows
    "whole-tiles": Case(1, (128,), 0, 1, 64),
    "64-rows-in-the-last-tile": Case(1, (188,), 4, 1, 64),
    "three-streams": Case(2, (29, 61, 5), 4, 2, 64),
    "only-slots": Case(1, (0, 6), 4, 1, 64),
    "no-rows-in-one": Case(1, (0, 30), 0, 1, 64),
    "padding": Case(3, (401, 60), 4, 1, 64, ((401, 5, 200), (2, 60, 9))),
    "absent-stream": Case(3, (140, 60), 4, 1, 64, ((0, 140, 4), (60, 0, 3))),
    "all-absent": Case(2, (50, 40), 2, 1, 64, ((0, 50), (0, 40))),
    "absent-without-slots": Case(2, (60, 80), 0, 1, 64, ((0, 60), (3, 0))),
    "slots-across-two-tiles": Case(2, (170,), 20, 1, 64, ((170, 3),)),
    "small-wide": Case(1, (50, 108), 4, 1, 128),
    "padding-wide": Case(2, (300, 60), 4, 2, 128, ((20, 300), (60, 0))),
}


def poison_padding(case, qkv):
    """NaN, which any use of padding would spread."""
    for stream, own, lengths in zip(qkv, case.own, case.lengths, strict=True):
        for example, length in enumerate(lengths):
            stream[example, length:own] = torch.nan
            if length == 0:
                stream[example] = torch.nan


def build():
    """The kernels' sources compiled as C++, and loaded."""
    import pybind11

    folders = (pybind11.get_include(), sysconfig.get_path("include"))
    units = [("csrc/cuda/bindings.cpp", [])]
    for source in sorted((ROOT / "csrc/cuda").rglob("*.cu")):
        instances = product(("Bfloat16", "Float16"), (64, 128))
        macros = [[f"-DMBT_FAST_ELEMENT={e}", f"-DMBT_FAST_DIM={d}"] for e, d in instances]
        for own in macros if source.stem.endswith(("_fwd", "_bwd")) else [[]]:
            units.append((str(source.relative_to(ROOT)), own))
    library = shared_library("_cuda.so", units, [*FLAGS, *(f"-I{folder}" for folder in folders)])
    return import_module(library)


def import_module(library):
    """The Python module that a library is; pybind11 keeps modules by their names."""
    spec = importlib.util.spec_from_file_location(f"{library.parent.name}._cuda", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install(module, monkeypatch):
    """Let backend 'cuda' run on CPU tensors, by the emulation; on a GPU there is nothing to do.

    Returns a function that sets when copies complete, and the number of multiprocessors.
    """
    if ON_GPU:
        return lambda seed, multiprocessors: None
    (row,) = (row for row in dispatch.BACKENDS if row.name == "cuda")
    monkeypatch.setitem(vars(row), "device_type", "cpu")
    monkeypatch.setattr(dispatch, "_CANDIDATES", {})
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(extension, "cuda_module", lambda: module)
    monkeypatch.setitem(dispatch._MISSING, extension.CUDA_MODULE, [])
    module.emulate(1, 2)
    return module.emulate
