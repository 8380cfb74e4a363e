"""``libcuda.so.1`` without a device, from ``driver.c``: made on first use, loaded for good.

Whoever opens ``libcuda.so.1`` afterwards gets this one, so a process that has loaded it can no
longer use a GPU; and one that has used a GPU cannot load it.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mbt_fast.testing.ptx.tensor_map import encode

SOURCE = Path(__file__).with_name("driver.c")
NAME = "libcuda.so.1"
SUCCESS, INVALID_VALUE, LAUNCH_FAILED = 0, 1, 719  # CUresult

Triple = tuple[int, int, int]
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_void_p),
)
_LONGS, _INTS = ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_uint32)
_TENSOR_MAP = ctypes.CFUNCTYPE(
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p),
    *(_LONGS, _LONGS, _INTS, _INTS),
    *(ctypes.c_int,) * 4,
)


class Shape(NamedTuple):
    """What ``cuLaunchKernelEx`` is told beside the parameters."""

    grid: Triple
    block: Triple
    cluster: Triple
    shared_bytes: int  # of dynamic shared memory, for each block


class Library(NamedTuple):
    """The loaded driver."""

    folder: Path  # holds libcuda.so.1, for linkers
    handle: ctypes.CDLL


@cache
def load(include: str, folder: Path) -> Library:
    """Compile the driver unless ``folder`` has it, and load it.

    Args:
        include: Folder with ``cuda.h``.
        folder: Where libraries are kept; each version of source and header has a folder in it.

    Raises:
        RuntimeError: There is no C compiler, or this process has another ``libcuda.so.1``.
        subprocess.CalledProcessError: The compiler refuses the source.
    """
    content = SOURCE.read_bytes() + Path(include, "cuda.h").read_bytes()
    library = folder / hashlib.sha256(content).hexdigest()[:16] / NAME
    if not library.exists():
        _compile(include, library)
    handle = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    if not hasattr(ctypes.CDLL(NAME), "mbt_fast_set_callbacks"):
        raise RuntimeError(
            f"{NAME} of a GPU is loaded already: kernels must run on the executor in a process "
            "that has not used CUDA"
        )
    return Library(library.parent, handle)


def _compile(include: str, library: Path) -> None:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("a C compiler must be there, as for Triton itself: set CC")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        part = Path(folder, NAME)
        command = [compiler, "-shared", "-fPIC", "-O1", f"-I{include}", f"-Wl,-soname,{NAME}"]
        subprocess.run([*command, str(SOURCE), "-o", str(part)], check=True)
        part.replace(library)  # never half written, whoever else makes it


def connect(
    library: Library, on_launch: Callable[[int, Shape, "ctypes._Pointer[ctypes.c_void_p]"], int]
) -> None:
    """Send launches of this process to a function of the kernel's handle, shape and parameters.

    The function returns a ``CUresult``, and may not raise.
    """

    def launch(function, shape, parameters):
        n = shape[:10]
        grid, block, cluster = (n[0], n[1], n[2]), (n[3], n[4], n[5]), (n[6], n[7], n[8])
        return on_launch(function, Shape(grid, block, cluster, n[9]), parameters)

    callbacks = _LAUNCH(launch), _TENSOR_MAP(_encode)
    library.handle.mbt_fast_set_callbacks(*callbacks)
    _ALIVE[:] = callbacks  # as long as the driver may call them


def _encode(target, kind, rank, base, sizes, strides, box, steps, *modes):
    """``cuTensorMapEncodeTiled``: the executor's own layout, for a true driver's is secret."""
    try:
        packed = encode(
            kind, base, sizes[:rank], strides[: rank - 1], box[:rank], steps[:rank], *modes
        )
    except ValueError:
        return INVALID_VALUE
    ctypes.memmove(target, packed, len(packed))
    return SUCCESS


_ALIVE: list[object] = []
