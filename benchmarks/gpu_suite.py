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
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
VARIABLE = "MBT_FAST_COMMIT"
SHARDS = max(1, min(14, (os.cpu_count() or 2) - 2))  # Triton compiles for longer than tests run
OPS = ("bias_gelu", "add_layer_norm", "residual_add")
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
    build = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(work / "site")]
    demanded = {"MBT_FAST_CUDA": "1" if gpu else "0", "MBT_FAST_NATIVE": "0"}
    pytest = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider"]
    pytest += ["-o", "pythonpath=tests/ops tests/kernels tests/models"]
    tests = [*pytest, "-p", "benchmarks.gpu_tests", "-v", "-rN", "--tb=short", "-m", "not aot"]
    tests += [] if gpu else ["--rehearse"]
    folders = [f"tests/{name}" for name in ("ops", "kernels", "layers")]
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
        some = ["--shard", f"{number}/{SHARDS}", "--compiled", f"{work}/compiled-{number}.json"]
        return [*tests, *folders, "-k", "triton or cuda" if gpu else "triton", *some]

    attention = (
        [f"{backend} and bfloat16" for backend in ("cuda", "triton")] if gpu else ["bfloat16"]
    )
    smoke = [first("bottleneck_attention", which) for which in attention] + [*map(first, OPS)]
    layer = map(bench, (*OPS, "layer", "model"))
    return [
        Step("build", 1, 60, [[*build, "--build-temp", str(work / "build")]], demanded),
        Step("smoke", 1, 40, smoke),
        Step("attention", 1, 80, [timed("attention", bench("bottleneck_attention"))]),
        Step("correctness", 1, 120, [shard(number) for number in range(SHARDS)]),
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
        for step in steps(work, gpu=machine["capability"] is not None):
            if args.part in (None, step.part) and not (step.name == "build" and has_cuda(site)):
                document["steps"].append(run(step, work))
                if step.name == "correctness":
                    document["compiled"] = compiled(work)
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


def run(step: Step, work: Path) -> dict[str, Any]:
    """Run one step, its output to logs; 124 means that it ran past its limit."""
    start = time.perf_counter()
    logs = [work / "logs" / f"{step.name}-{number}.log" for number in range(len(step.commands))]
    processes = [
        _start(command, step, work, log) for command, log in zip(step.commands, logs, strict=True)
    ]
    codes = [_finish(process, start + step.seconds) for process in processes]
    seconds = time.perf_counter() - start
    print(f"{step.name:<12} rc={max(codes):<4} {seconds:.0f} s", flush=True)
    return {"name": step.name, "rc": codes, "seconds": seconds, "commands": step.commands}


def _start(
    command: list[str], step: Step, work: Path, log: Path
) -> "subprocess.Popen[bytes] | None":
    environment = {**os.environ, "PYTHONPATH": str(work / "site"), **step.environment}
    environment.setdefault(VARIABLE, commit() or "unknown")
    try:
        return subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=log.open("w"), stderr=subprocess.STDOUT
        )
    except FileNotFoundError as error:
        log.write_text(f"{error}\n")
        return None


def _finish(process: "subprocess.Popen[bytes] | None", deadline: float) -> int:
    if process is None:
        return 127
    try:
        return abs(process.wait(timeout=max(0.0, deadline - time.perf_counter())))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return 124


def pack(work: Path, archive: Path) -> None:
    """Everything but the sources and what was built, in one file that is never half written."""
    part = archive.with_suffix(".part")
    with tarfile.open(part, "w:gz") as file:
        for path in sorted([*work.glob("*.json"), work / "logs"]):
            file.add(path, arcname=path.name)
    part.replace(archive)


def compiled(work: Path) -> dict[str, Any]:
    """What Triton compiled in the tests: how much, how often, and in how much time of one core."""
    shards = [json.loads(path.read_text()) for path in sorted(work.glob("compiled-*.json"))]
    entries = [entry for shard in shards for entry in shard]
    seconds = [sum(entry["seconds"] for entry in shard) for shard in shards]
    return {
        "specialisations": len({(entry["kernel"], entry["key"]) for entry in entries}),
        "compilations": len(entries),
        "core_seconds": round(sum(seconds), 1),
        "core_seconds_of_the_longest_shard": round(max(seconds, default=0.0), 1),
    }


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


def read_outcomes(collected: str, logs: Iterable[str]) -> dict[str, str]:
    """Outcome of each test; ``"none"`` of those that were not run before a process was ended."""
    outcomes = dict.fromkeys(re.findall(r"^tests/.*?::.*$", collected, re.M), "none")
    pattern = re.compile(r"^(tests/.*?::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", re.M)
    return outcomes | {test: outcome for log in logs for test, outcome in pattern.findall(log)}


def is_verified(kernel: str, outcomes: Mapping[str, str], kernels: Iterable[str]) -> bool:
    """Whether some test that concerns the kernel passed, and none did anything but pass or skip."""
    found = {outcome for test, outcome in outcomes.items() if concerns(test, kernel, kernels)}
    return "PASSED" in found and found <= {"PASSED", "SKIPPED"}


def concerns(test: str, kernel: str, kernels: Iterable[str]) -> bool:
    """Whether a test is about a kernel: it names its backend, and its file names no other op."""
    if kernel == "cuda":
        return "cuda" in test
    file = test.partition("::")[0]
    named = [name for name in kernels if name != "cuda" and name in file]
    return "triton" in test and (not named or kernel in named)


if __name__ == "__main__":
    raise SystemExit(main())
