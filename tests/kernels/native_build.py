"""C++ built for tests: once for each state of its sources, kept in the temporary directory."""

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shlex.split(os.environ.get("CXX", "c++"))
CACHE = Path(tempfile.gettempdir()) / f"mbt-fast-tests-{os.getuid()}"
COMMON = ["-std=c++17", "-fPIC", f"-I{ROOT / 'csrc'}"]
SUFFIXES = (".cpp", ".hpp", ".cu", ".cuh")

needs_compiler = pytest.mark.skipif(not shutil.which(COMPILER[0]), reason="no C++ compiler")


def shared_library(name, units, flags):
    """Path of the library that the translation units make, two compiled at a time.

    Args:
        name: Its file name.
        units: Sources relative to the root, each with flags of its own.
        flags: Flags of all of them.
    """
    version = subprocess.run([*COMPILER, "--version"], capture_output=True, check=True).stdout
    parts = (units, flags, COMPILER, COMMON, version)
    return built_once(name, parts, lambda library: _build(library, units, flags))


def built_once(name, parts, build):
    """Path of the file that ``build(path)`` makes, in a folder of its own.

    Args:
        name: Its file name.
        parts: Everything that it depends on, beside the sources here.
        build: Called where no process has built it yet.
    """
    CACHE.mkdir(mode=0o700, exist_ok=True)
    key = _hash((name, parts))
    path = CACHE / key / name
    with open(CACHE / f"{key}.lock", "w") as lock:  # other processes of pytest-xdist wait here
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            build(path)
    return path


def _hash(parts):
    """Of these and of all sources."""
    digest = hashlib.sha256(repr(parts).encode())
    for folder in (ROOT / "csrc", ROOT / "tests/kernels/native"):
        for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _build(library, units, flags):
    def compile_one(numbered):
        number, (source, own) = numbered
        target = library.parent / f"{number}.o"
        call = [*COMPILER, *COMMON, *flags, *own, "-x", "c++", "-c", ROOT / source, "-o", target]
        subprocess.run(call, check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, enumerate(units)))
    unfinished = library.with_suffix(".unfinished")
    subprocess.run([*COMPILER, "-shared", *objects, "-o", unfinished], check=True)
    unfinished.rename(library)
    for path in objects:
        path.unlink()
