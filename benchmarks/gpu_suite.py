"""Everything that needs a GPU, in one command: ``python -m benchmarks.gpu_suite --out DIR``.

In order, each step with a limit of its own, and none stops the next:

1. build        the CUDA kernels, unless ``mbt_fast/_cuda*.so`` loads here and is of these sources
2. smoke        each kernel on tiny shapes, in a process of its own: results are compared
3. attention    times of attention
4. correctness  the tests of ops, kernels and layers that name a kernel backend, see gpu_tests.py
5. layer        times of the layer's kernels, of the layer and of the model
6. sanitizer    compute-sanitizer on a few tests

``--part 1`` ends before step 5, ``--part 2`` begins there; each takes at most 5.5 minutes. DIR gets
one archive, ``suite.tar.gz``, written anew after every step: ``suite.json`` with device, versions,
commit and hashes of the kernels' sources, all logs, which name each test as it ends, the records of
pytest-benchmark, and ``verified.json``, which belongs in ``kernels/``. There each kernel whose
tests all passed is on its own.

Needs no installation: it runs a copy of the sources, laid out as they are installed. Outside a
checkout ``MBT_FAST_COMMIT`` says which commit they are of.

Without a GPU it rehearses: tiny shapes on the CPU, and each test up to its launches, whose kernels
are compiled for sm_90. ``suite.json`` then says what that costs. Under the same TRITON_CACHE_DIR,
and with the same Triton and Python, a run on a GPU finds these kernels: Triton's keys are hashes of
all that they depend on.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_results import compiled, is_verified, read_outcomes

ROOT = Path(__file__).parents[1]
VARIABLE = "MBT_FAST_COMMIT"
CORES = os.cpu_count() or 2
MOST_SHARDS = 14  # of the tests, for Triton compiles for longer than they run
OPS = ("bias_gelu", "add_layer_norm", "residual_add")
TESTS = (  # that run otherwise on a GPU than without one
    *("tests/ops", "tests/layers", "tests/kernels/test_triton.py"),
    *(f"tests/kernels/cuda/test_{name}.py" for name in ("bottleneck_attention_cuda", "capture")),
)
KEPT = ("device", "capability", "torch", "triton", "cuda", "date")  # of a machine, in verified.json


class Step(NamedTuple):
    """Commands that run side by side, each in a process of its own."""

    name: str
    part: int
    seconds: int
    commands: list[list[str]]
    environment: Mapping[str, str] = {}


def steps(work: Path, gpu: bool) -> list[Step]:
    """The suite; the limits of each part add up to 5.5 minutes at most."""
    shards = max(1, min(MOST_SHARDS, CORES - 2)) if gpu else MOST_SHARDS
    build = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(work / "site")]
    demanded = {"MBT_FAST_CUDA": "1" if gpu else "0", "MBT_FAST_NATIVE": "0"}
    pytest = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider"]
    pytest += ["-o", "pythonpath=tests/ops tests/kernels tests/models"]
    tests = [*pytest, "-p", "benchmarks.gpu_tests", "-v", "-rN", "--tb=short"]
    tests += ["-m", "not aot and not exhaustive", *([] if gpu else ["--rehearse"])]
    few = ["tests/ops", "-k", "(triton or cuda) and tolerance and two-streams"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "1"]
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # or the allocator hides overruns

    def first(op: str, which: str = "bfloat16") -> list[str]:
        return [*pytest, "-v", bench(op), "--benchmark-disable", "-k", f"{which} and not short"]

    def timed(name: str, *files: str) -> list[str]:
        scale = ["--seconds", "0.5"] if gpu else ["--tiny"]
        record = f"--benchmark-json={work}/{name}.json"
        return [*pytest, "-q", *files, *scale, record, "-k", "bfloat16 and not short"]

    def shard(number: int) -> list[str]:
        some = ["--shard", f"{number}/{shards}", "--compiled", f"{work}/compiled-{number}.json"]
        return [*tests, *TESTS, "-k", "triton or cuda" if gpu else "triton", *some]

    attention = (
        [f"{backend} and bfloat16" for backend in ("cuda", "triton")] if gpu else ["bfloat16"]
    )
    smoke = [first("bottleneck_attention", which) for which in attention] + [*map(first, OPS)]
    layer = map(bench, (*OPS, "layer", "model"))
    return [
        Step("build", 1, 60, [[*build, "--build-temp", str(work / "build")]], demanded),
        Step("smoke", 1, 40, smoke),
        Step("attention", 1, 80, [timed("attention", bench("bottleneck_attention"))]),
        Step("correctness", 1, 120, [shard(number) for number in range(shards)]),
        Step("layer", 2, 220, [timed("layer", *layer)]),
        Step("memcheck", 2, 100, [[*sanitizer, "--tool", "memcheck", *tests, *few]], uncached),
    ]


def bench(name: str) -> str:
    """A file of benchmarks."""
    return f"benchmarks/bench_{name}.py"


def main(arguments: list[str] | None = None) -> int:
    """Run all steps; the exit code is the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the archive")
    parser.add_argument("--part", type=int, choices=(1, 2), help="one part of two; by default both")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "logs").mkdir()
        site = lay_out(work / "site")
        machine = describe(site)
        document: dict[str, Any] = {"machine": machine, "commit": commit(), "steps": []}
        gpu = machine["capability"] is not None
        for step in steps(work, gpu):
            if args.part in (None, step.part) and not (step.name == "build" and has_cuda(site)):
                document["steps"].append(run(step, work) if gpu else rehearse(step, work))
                if step.name == "correctness":
                    shards = [json.loads(p.read_text()) for p in work.glob("compiled-*.json")]
                    document["compiled"] = compiled(shards)
                    write_verified(step, work, document, describe(site))
                (work / "suite.json").write_text(json.dumps(document, indent=1) + "\n")
                pack(work, args.out / "suite.tar.gz")
    return sum(any(step["rc"]) for step in document["steps"])


def lay_out(site: Path) -> Path:
    """Copy the sources to where an installation would have them."""
    ignore = shutil.ignore_patterns("__pycache__", "results")
    shutil.copytree(ROOT / "mbt_fast", site / "mbt_fast", ignore=ignore)
    shutil.copytree(ROOT / "kernels", site / "mbt_fast" / "kernels", ignore=ignore)
    shutil.copytree(ROOT / "benchmarks", site / "benchmarks", ignore=ignore)
    compiled = Path("benchmarks/results/aot")  # which tests of kernels read
    shutil.copytree(ROOT / compiled, site / compiled)
    return site


def has_cuda(site: Path) -> bool:
    """Whether CUDA kernels of these sources load here; others are removed."""
    path = site / "mbt_fast" / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.exists():
        return False
    command = [sys.executable, "-P", "-c", "import mbt_fast._cuda as built; print(built.sources)"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    fits = done.stdout.strip() == cuda_sources()
    if not fits:
        path.unlink()
    return fits


def cuda_sources() -> str:
    """Hash of the sources of this checkout's CUDA kernels."""
    code = "import runpy; print(runpy.run_path('setup.py')['cuda_source_hash']())"
    return subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip()


def describe(site: Path) -> dict[str, Any]:
    """Machine and hashes of the kernels, of the copy that runs."""
    command = [sys.executable, "-P", "-m", "benchmarks.machine"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, cwd=ROOT)
    return json.loads(done.stdout)


def commit() -> str | None:
    """The commit, marked if the sources differ from it; None where it is unknown."""
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def run(step: Step, work: Path, at_once: int | None = None) -> dict[str, Any]:
    """Run one step, its output to logs; 124 means that a command ran past the limit.

    Args:
        step: What to run.
        work: Has the sources in ``site``, and gets ``logs``.
        at_once: How many of its commands; by default all.
    """
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(work / "site"), **step.environment}
    environment.setdefault(VARIABLE, commit() or "unknown")

    def execute(number: int) -> int:
        left = max(0.0, start + step.seconds - time.perf_counter())
        with (work / "logs" / f"{step.name}-{number}.log").open("w") as log:
            try:
                command = step.commands[number]
                options: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT}
                done = subprocess.run(
                    command, env=environment, cwd=ROOT, timeout=left, check=False, **options
                )
            except subprocess.TimeoutExpired:
                return 124
            except FileNotFoundError as error:
                log.write(f"{error}\n")
                return 127
        return abs(done.returncode)

    with ThreadPoolExecutor(at_once or len(step.commands)) as pool:
        codes = list(pool.map(execute, range(len(step.commands))))
    seconds = time.perf_counter() - start
    print(f"{step.name:<12} rc={max(codes):<4} {seconds:.0f} s", flush=True)
    return {"name": step.name, "rc": codes, "seconds": seconds, "commands": step.commands}


def pack(work: Path, archive: Path) -> None:
    """Everything but the sources and what was built, in one file that is never half written."""
    part = archive.with_suffix(".part")
    with tarfile.open(part, "w:gz") as file:
        for path in sorted([*work.glob("*.json"), work / "logs"]):
            file.add(path, arcname=path.name)
    part.replace(archive)


def rehearse(step: Step, work: Path) -> dict[str, Any]:
    """Run a step on as many cores as there are, in as much time as it takes."""
    return run(step._replace(seconds=3600), work, at_once=CORES)


def write_verified(
    step: Step, work: Path, document: dict[str, Any], machine: dict[str, Any]
) -> None:
    """Keep which kernels passed; on a GPU, add them to what ``kernels/verified.json`` has."""
    run(collecting(step), work)
    collected = (work / "logs" / "collection-0.log").read_text()
    outcomes = read_outcomes(collected, (p.read_text() for p in work.glob("logs/correctness-*")))
    passed = {
        kernel: is_verified(kernel, outcomes, machine["sources"]) for kernel in machine["sources"]
    }
    document["verified"] = passed
    sources = {kernel: machine["sources"][kernel] for kernel, good in passed.items() if good}
    if machine["capability"] is not None and sources:
        known = json.loads((ROOT / "kernels" / "verified.json").read_text())
        entry = {key: machine[key] for key in KEPT} | {"commit": commit(), "sources": sources}
        (work / "verified.json").write_text(json.dumps([*known, entry], indent=1) + "\n")


def collecting(step: Step) -> Step:
    """The step's command, to list the tests that it ought to run."""
    words = step.commands[0]
    words = words[: words.index("--shard")] if "--shard" in words else words
    command = [word for word in words if word not in ("-v", "-rN")]
    return step._replace(
        name="collection", commands=[[*command, "--collect-only", "-q"]], seconds=30
    )


if __name__ == "__main__":
    raise SystemExit(main())
