"""What the logs of the GPU suite say: which kernels are verified, and what was compiled."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any


def compiled(shards: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """What Triton compiles for the tests, in seconds of one core.

    That of a shard is what it would be without the others, whose kernels it may have found in
    Triton's cache.

    Args:
        shards: What ``benchmarks.gpu_tests --compiled`` wrote in each.
    """
    cost: dict[str, float] = {}
    for entry in chain.from_iterable(shards):
        cost[entry["key"]] = max(entry["seconds"], cost.get(entry["key"], 0.0))
    seconds = [sum(cost[entry["key"]] for entry in shard) for shard in shards]
    return {
        "specialisations": len(cost),
        "compilations": sum(map(len, shards)),
        "core_seconds": round(sum(cost.values()), 1),
        "core_seconds_of_the_longest_shard": round(max(seconds, default=0.0), 1),
    }


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
    """Whether a test is about a kernel: file or case name its backend, and no other op."""
    if kernel == "cuda":
        return "cuda" in test
    named = [name for name in kernels if name != "cuda" and name in test]
    return "triton" in test and (not named or kernel in named)
