"""Everything that needs a GPU, in one command: ``python -m benchmarks.gpu_suite --out DIR``.

In order, each step with a limit of its own, and none stops the next:

1. build        the CUDA kernels, unless ``mbt_fast/_cuda*.so`` is there for this Python
2. smoke        every benchmark once on tiny shapes, which compares results and times nothing
3. attention    times of attention
4. correctness  the tests of ops, kernels and layers that name a kernel backend
5. layer        times of the layer's kernels, of the layer and of the model
6. sanitizer    compute-sanitizer on a few tests

``--part 1`` ends before step 5, ``--part 2`` begins there; each takes at most 5.5 minutes. DIR gets
one archive, ``suite.tar.gz``, written anew after every step: ``suite.json`` with device, versions,
commit and hashes of the kernels' sources, all logs, the records of pytest-benchmark, and
``verified.json``, which belongs in ``kernels/``. There each kernel whose tests all passed is on its
own. Needs no installation: it runs a copy of the sources, laid out as they are installed. Outside a
checkout ``MBT_FAST_COMMIT`` says which commit they are of. Without a GPU it rehearses: the tests
that run here, and tiny shapes.
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
KEPT = ("device", "capability", "torch", "triton", "cuda", "date")  # of a machine, in verified.json


class Step(NamedTuple):
    """One command of the suite."""

    name: str
    part: int
    seconds: int
    command: list[str]
    environment: Mapping[str, str] = {}
    shards: int = 1  # processes side by side


def steps(work: Path, gpu: bool) -> list[Step]:
    """The suite; the limits of each part add up to 5.5 minutes at most."""
    build = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(work / "site")]
    demanded = {"MBT_FAST_CUDA": "1" if gpu else "0", "MBT_FAST_NATIVE": "0"}
    pytest = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider"]
    pytest += ["-o", "pythonpath=tests/ops tests/kernels tests/models"]
    tests = [*pytest, "-v", "-rN", "--tb=short", "-m", "not aot"]
    folders = [f"tests/{name}" for name in ("ops", "kernels", "layers")]
    few = ["tests/ops", "-k", "(triton or cuda) and tolerance and two-streams"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "1"]
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # or the allocator hides overruns
    ops = [f"benchmarks/bench_{op}.py" for op in ("bias_gelu", "add_layer_norm", "residual_add")]
    rest = [*ops, "benchmarks/bench_layer.py", "benchmarks/bench_model.py"]

    def timed(name: str, files: list[str], seconds: float) -> list[str]:
        scale = ["--seconds", str(seconds)] if gpu else ["--tiny"]
        return [*pytest, "-q", *files, *scale, f"--benchmark-json={work}/{name}.json"]

    attention = ["benchmarks/bench_bottleneck_attention.py", "-k", "not short"]
    return [
        Step("build", 1, 60, [*build, "--build-temp", str(work / "build")], demanded),
        Step("smoke", 1, 40, [*pytest, "-v", "benchmarks", "--benchmark-disable"]),
        Step("attention", 1, 80, timed("attention", attention, 0.5)),
        Step("correctness", 1, 120, [*tests, *folders, "-k", "triton or cuda"], shards=SHARDS),
        Step("layer", 2, 220, timed("layer", rest, 0.5)),
        Step("memcheck", 2, 100, [*sanitizer, "--tool", "memcheck", *tests, *few], uncached),
    ]


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
                    write_verified(step, work, document, describe(site))
                (work / "suite.json").write_text(json.dumps(document, indent=1) + "\n")
                pack(work, args.out / "suite.tar.gz")
    return sum(step["rc"] != 0 for step in document["steps"])


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
    """Whether the CUDA kernels are built already, for this Python; of which sources they say."""
    return (site / "mbt_fast" / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}").exists()


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
    logs = [work / "logs" / f"{step.name}-{shard}.log" for shard in range(step.shards)]
    shards = [_start(step, shard, work, log) for shard, log in enumerate(logs)]
    codes = [_finish(process, start + step.seconds) for process in shards]
    seconds = time.perf_counter() - start
    print(f"{step.name:<12} rc={max(codes):<4} {seconds:.0f} s", flush=True)
    return {"name": step.name, "rc": max(codes), "seconds": seconds, "command": step.command}


def _start(step: Step, shard: int, work: Path, log: Path) -> "subprocess.Popen[bytes] | None":
    environment = {**os.environ, "PYTHONPATH": str(work / "site"), **step.environment}
    environment["MBT_FAST_SHARD"] = f"{shard}/{step.shards}"
    environment.setdefault(VARIABLE, commit() or "unknown")
    try:
        return subprocess.Popen(
            step.command,
            env=environment,
            cwd=ROOT,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
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
    command = [word for word in step.command if word not in ("-v", "-rN")]
    return step._replace(
        name="collection", command=[*command, "--collect-only", "-q"], seconds=30, shards=1
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
