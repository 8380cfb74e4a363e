"""Run tests of this checkout on several stacks, and record what ran, when and how it went.

    python .ci/matrix.py --python .venv/bin/python --package triton=3.8.0,3.9.0 --cxx g++,clang++

A stack is an environment with torch (``--python``), a compiler (``--cxx``, ``none`` for no
compiler) and the packages of the environment. Every value of ``--package`` is a stack of its own,
with the first compiler: that version lies in front of the environment's, which is not changed.

HEAD is installed for each stack, into a folder of its own, and its tests run there. Rows go to
``docs/tested.json``, in place of a row of the same stack; the page "Tested stacks" of the
documentation shows them.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs" / "tested.json"
AREAS = ("tests/kernels", "tests/ops", "tests/layers", "tests/models", "tests/data", "tests/cli")
INTERPRETED = ("tests/kernels/test_triton.py", "tests/ops/test_layer_ops.py")
FACTS = """
import importlib.metadata, json, platform, torch
from mbt_fast.ops import extension
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
print(json.dumps({
    "python": platform.python_version(),
    "torch": torch.__version__,
    **{name: version(name) for name in ("triton", "av", "numpy")},
    "kernels": "; ".join(extension.why_no_cpu_kernels()) or extension.instruction_set(),
}))
"""


# The environment may have an editable install of this package, which would fill what is left out.
NOT_EDITABLE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "ditable" not in str(finder)]
"""
CAPTURED: dict[str, Any] = {"stdout": subprocess.PIPE}


class Stack(NamedTuple):
    """An environment, a compiler, and packages that stand in front of those it has."""

    python: str
    cxx: str
    packages: tuple[str, ...] = ()  # such as "av==17.0.0"


def stacks(pythons: list[str], cxx: list[str], packages: list[str]) -> Iterator[Stack]:
    """Each environment with each compiler; then with each version of each package."""
    for python in pythons:
        yield from (Stack(python, compiler) for compiler in cxx)
        for package in packages:
            name, _, versions = package.partition("=")
            for version in versions.split(","):
                yield Stack(python, cxx[0], (f"{name}=={version}",))


class Place:
    """A folder with the tests of HEAD, and with HEAD itself installed for a stack."""

    def __init__(self, stack: Stack, folder: str) -> None:
        """Install; what this says is printed if it leaves the C++ kernels out."""
        self._python, self._source = os.path.abspath(stack.python), Path(folder, "source")
        front = Path(folder, "packages")
        self._environment = _environment(stack, front)
        self._source.mkdir()
        front.mkdir()
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, **CAPTURED)
        subprocess.run(["tar", "x"], cwd=self._source, input=archive.stdout, check=True)
        install = ("-m", "pip", "install", "--no-deps", "--target", str(front))
        if stack.packages:
            print(self.run(*install, "-q", *stack.packages))
        (front / "sitecustomize.py").write_text(NOT_EDITABLE)
        said = self.run(*install, "-v", "--no-build-isolation", ".")
        for part in ("mbt_fast", "kernels"):  # what is installed is tested, not the sources
            shutil.rmtree(self._source / part)
        self.facts: dict[str, str] = json.loads(self.run("-c", FACTS).strip().splitlines()[-1])
        if stack.cxx != "none" and self.facts["kernels"].startswith("mbt_fast._C"):
            print(said[-2000:])

    def run(self, *arguments: str, **more: str) -> str:
        """The output of Python among the tests."""
        done = subprocess.run(
            [self._python, *arguments],
            cwd=self._source,
            env=self._environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout

    def test(self, *arguments: str, **more: str) -> dict[str, Any]:
        """Counts of outcomes, and the names of what failed."""
        quick = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--tb=line")
        return _outcome(self.run(*quick, *arguments, **more))


def run_stack(stack: Stack, tests: list[str], interpreted: list[str]) -> dict[str, Any]:
    """Install and test in a folder that is removed afterwards."""
    commit = _commit()
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        place = Place(stack, folder)
        has_triton = place.facts["triton"] != "none"
        return {
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "commit": commit,
            "compiler": _compiler(stack),
            **place.facts,
            "areas": tests,
            "tests": place.test(*tests) if tests else {},
            "interpreted": place.test("-k", "triton", *interpreted, TRITON_INTERPRET="1")
            if interpreted and has_triton
            else {},
        }


def _environment(stack: Stack, front: Path) -> dict[str, str]:
    """The packages of the stack first; one thread; the compiler or none."""
    compiler = (
        {"MBT_FAST_NATIVE": "0", "CXX": "no-such-compiler"}
        if stack.cxx == "none"
        else {"MBT_FAST_NATIVE": "auto", "CXX": stack.cxx}
    )
    fixed = {"MBT_FAST_CUDA": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(front)}
    return {**os.environ, **fixed, **compiler}


def _compiler(stack: Stack) -> str:
    """Such as ``clang++ 14.0.6``."""
    if stack.cxx == "none":
        return "none"
    said = subprocess.run([stack.cxx, "--version"], text=True, check=True, **CAPTURED).stdout
    version = re.search(r"\d+\.\d+\.\d+", said)
    return f"{Path(stack.cxx).name} {version[0] if version else '?'}"


def _commit() -> str:
    command = ["git", "rev-parse", "--short=10", "HEAD"]
    return subprocess.run(command, cwd=ROOT, text=True, check=True, **CAPTURED).stdout.strip()


def _outcome(output: str) -> dict[str, Any]:
    """Counts from the last line of pytest, and the names of what failed."""
    last = output.strip().splitlines()[-1] if output.strip() else "nothing"
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, flags=re.MULTILINE)
    return {**(counts or {"error": 1}), "names": failed}


def key(row: dict[str, Any]) -> tuple[str, ...]:
    """What makes a stack another one."""
    return tuple(row[name] for name in ("python", "torch", "triton", "av", "numpy", "compiler"))


def main() -> int:
    """Run the stacks one after the other; return how many had failures, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", nargs="+", default=[sys.executable])
    parser.add_argument("--cxx", default="g++", help="compilers, separated by commas; none is one")
    parser.add_argument("--package", nargs="*", default=[], metavar="NAME=VERSION,...")
    parser.add_argument("--tests", nargs="*", default=list(AREAS))
    parser.add_argument("--interpreted", nargs="*", default=list(INTERPRETED))
    parser.add_argument("--record", type=Path, default=RECORD)
    args = parser.parse_args()
    rows = (
        {key(row): row for row in json.loads(args.record.read_text())}
        if (args.record.exists())
        else {}
    )
    failures = 0
    for stack in stacks(args.python, args.cxx.split(","), args.package):
        if stack.cxx != "none" and shutil.which(stack.cxx) is None:
            print(f"left out: {stack.cxx} is not found")
            continue
        row = run_stack(stack, args.tests, args.interpreted)
        print(json.dumps(row), flush=True)
        rows[key(row)] = row
        outcomes = (row["tests"], row["interpreted"])
        failures += any("failed" in found or "error" in found for found in outcomes)
        text = json.dumps([rows[name] for name in sorted(rows)], indent=1)
        args.record.write_text(text + "\n")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
