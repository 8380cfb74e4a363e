"""Everything that needs a GPU, in one command: ``python -m benchmarks.gpu_suite --out DIR``.

In order, each step with a limit of its own and 9 minutes in all; a step that fails does not stop
the next. (1) the CUDA kernels are built, (2) correctness of every kernel and of what guards the
benchmarks, (3) compute-sanitizer on a small set, (4) every entry of ``benchmarks.registry`` that
is for a GPU. DIR gets ``suite.json`` with the end of every log, a document per entry, and, if the
tests passed on a GPU, ``verified.json``, which belongs in ``kernels/``.

Needs no installation: it runs a copy of the sources, laid out as they are installed. Outside a
checkout ``MBT_FAST_COMMIT`` says which commit they are of. Without a GPU it rehearses: the tests
that run here, and tiny shapes, without the CUDA kernels.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.commit import VARIABLE, commit
from benchmarks.registry import ENTRIES

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/test_triton_kernels.py",
    "tests/test_cuda_kernels.py",
    "tests/test_cuda_backward.py",
    "tests/test_bottleneck_attention.py",
    "tests/test_layer_ops.py",
    "tests/test_layer_ops_calls.py",
    "tests/test_residual_add.py",
    "tests/test_all_streams.py",
    "tests/test_triton_layer.py",
    "tests/test_tracing.py",
    "tests/test_random_calls.py",
    "tests/test_known_bugs.py",
    "tests/test_stochastic_depth.py",
    "tests/test_capture.py",
    "tests/test_trace.py",
    "tests/test_bench.py",
)
GUARDS = [file for entry in ENTRIES if "cuda" in entry.seconds for file in entry.guards_on("cuda")]
SHARDS = max(1, min(8, (os.cpu_count() or 1) // 2))
SANITIZED = "two-streams or absent-stream or wide-head or dropped"


class Step(NamedTuple):
    """One command of the suite."""

    name: str
    command: list[str]
    seconds: int
    environment: dict[str, str] = {}  # noqa: RUF012  (a NamedTuple's default, never changed)
    shards: int = 1  # processes side by side; compiling kernels takes longer than running them


def steps(out: Path, gpu: bool, tree: str = "") -> list[Step]:
    """The suite; the limits add up to 9 minutes. ``tree`` is the hash of the sources."""
    pytest = [sys.executable, "-P", "-m", "pytest", "-q", "-o", "pythonpath=tests"]
    build = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(out / "site")]
    demanded = {"MBT_FAST_CUDA": "1" if gpu else "0", "MBT_FAST_NATIVE": "0"}
    tests = [str(ROOT / file) for file in dict.fromkeys([*TESTS, *GUARDS])]
    report = ["-o", f"junit_suite_name={tree}", f"--junitxml={out}/logs/tests-{{shard}}.xml"]
    reports = [f"{out}/logs/tests-{shard}.xml" for shard in range(SHARDS)]
    small = [*pytest, *tests[1:4], "-k", f"(triton or cuda) and tolerance and ({SANITIZED})"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "1"]
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # or the allocator hides overruns
    benchmarks = [sys.executable, "-P", "-m", "benchmarks.run", "--out", str(out)]
    benchmarks += ["--junit", *reports, "--seconds", "210"] if gpu else ["--smoke"]
    return [
        Step("build", [*build, "--build-temp", str(out / "build")], 60, demanded),
        Step("tests", [*pytest, *report, *tests], 160, shards=SHARDS),
        Step("memcheck", [*sanitizer, "--tool", "memcheck", *small], 35, uncached),
        Step("initcheck", [*sanitizer, "--tool", "initcheck", *small], 35, uncached),
        Step("benchmarks", benchmarks, 250),
    ]


def main() -> int:
    """Run all steps; the exit code is the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    out = parser.parse_args().out.resolve()
    shutil.rmtree(out / "logs", ignore_errors=True)
    (out / "logs").mkdir(parents=True)
    if found := commit():
        os.environ[VARIABLE] = found  # the copy is no checkout
    site = lay_out(out / "site")
    stamp = environment(site)
    gpu = stamp["capability"] is not None
    results: list[dict[str, Any]] = []
    for step in steps(out, gpu, stamp["tree"]):
        results.append(run(step, site, out))
        document = {"environment": stamp, "steps": results}
        (out / "suite.json").write_text(json.dumps(document, indent=1) + "\n")
        print(
            f"{step.name:<10} rc={results[-1]['rc']:<4} {results[-1]['seconds']:.0f} s", flush=True
        )
    if gpu and all(result["rc"] == 0 for result in results if result["name"] == "tests"):
        known = json.loads((ROOT / "kernels" / "verified.json").read_text())
        now = environment(site)  # with the CUDA kernels, if they could be built
        verified = [*known, {key: now[key] for key in KEPT}]
        (out / "verified.json").write_text(json.dumps(verified, indent=1) + "\n")
    for folder in (site, out / "logs"):
        shutil.rmtree(folder)
    return sum(result["rc"] != 0 for result in results)


KEPT = ("device", "capability", "torch", "triton", "cuda", "commit", "date", "sources")


def lay_out(site: Path) -> Path:
    """Copy the sources to where an installation would have them."""
    shutil.rmtree(site, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "results")
    shutil.copytree(ROOT / "mbt_fast", site / "mbt_fast", ignore=ignore)
    shutil.copytree(ROOT / "kernels", site / "mbt_fast" / "kernels", ignore=ignore)
    shutil.copytree(ROOT / "benchmarks", site / "benchmarks", ignore=ignore)
    return site


def run(step: Step, site: Path, out: Path) -> dict[str, Any]:
    """Run one step, its output to logs; 124 means that it ran past its limit."""
    start = time.perf_counter()
    logs = [out / "logs" / f"{step.name}-{shard}.log" for shard in range(step.shards)]
    shards = [_start(step, shard, site, log) for shard, log in enumerate(logs)]
    codes = [_finish(process, start + step.seconds) for process in shards]
    seconds = time.perf_counter() - start
    tails = [log.read_text()[-4000:] for log in logs]
    return {"name": step.name, "rc": max(codes), "seconds": seconds, "tails": tails}


def _start(step: Step, shard: int, site: Path, log: Path) -> "subprocess.Popen[bytes] | None":
    environment = {**os.environ, "PYTHONPATH": str(site), **step.environment}
    environment["MBT_FAST_SHARD"] = f"{shard}/{step.shards}"
    with open(log, "w") as file:
        try:
            return subprocess.Popen(
                [part.replace("{shard}", str(shard)) for part in step.command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=ROOT,
            )
        except FileNotFoundError as error:
            file.write(f"{error}\n")
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


def environment(site: Path) -> dict[str, Any]:
    """The stamp of the copy that runs."""
    code = "import json; from benchmarks.environment import stamp; print(json.dumps(stamp()))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    raise SystemExit(main())
