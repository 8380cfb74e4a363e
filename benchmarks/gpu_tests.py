"""How the GPU suite runs tests: few specialisations, each compiled by one process, all counted.

A plugin of pytest, ``-p benchmarks.gpu_tests``:

    --shard I/N       the I-th of N parts; tests that compile the same kernels are in one
    --compiled FILE   write what Triton compiled: test, kernel, key and CPU seconds of each
    --rehearse        without a GPU: Triton compiles for sm_90, and nothing is launched

A rehearsal shows that every test reaches its launches, and how long compilers take; results mean
nothing in it, so a test that finds them wrong is skipped.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

ARCH = 90
SEEDS = 4  # of random calls
NAMED = ("two-streams", "padding", "absent", "dropped", "MBT", "mbt", "saturated")  # in float32 too

NO_RESULTS = "a rehearsal has no results to compare"

_DEVICE = ExitStack()
_compiled: list[dict[str, Any]] = []
_test = ""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options above."""
    group = parser.getgroup("mbt_fast")
    group.addoption("--shard", default="0/1")
    group.addoption("--compiled", type=Path)
    group.addoption("--rehearse", action="store_true")


def pytest_configure(config: pytest.Config) -> None:
    """Before tests are collected, because they ask which backends are there."""
    if config.getoption("rehearse"):
        _rehearse()
    if config.getoption("compiled"):
        _count()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Write what was compiled."""
    _DEVICE.close()
    path = config.getoption("compiled")
    if path:
        path.write_text(json.dumps(_compiled))


@pytest.hookimpl(trylast=True)  # after everything that names or marks tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out more of the same, and what other processes run; bfloat16 comes first."""
    shard, count = map(int, config.getoption("shard").split("/"))
    kept = [item for item in items if is_needed(item.nodeid) and place(item.nodeid, count) == shard]
    kept.sort(key=lambda item: "bfloat16" not in item.nodeid)
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def is_needed(test: str) -> bool:
    """Whether a test is no mere repetition on other numbers, in other dtypes."""
    seed = re.search(r"(?:test_random_call\[.*|random)-(\d+)", test)
    if seed and int(seed[1]) >= SEEDS:
        return False
    other = "float32" in test or ("float16" in test and "bfloat16" not in test)
    return not other or any(name in test for name in NAMED)


def place(test: str, shards: int) -> int:
    """Which shard has a test: one for all that have the same case and dtype."""
    dtype = next((name for name in ("bfloat16", "float16", "float32") if name in test), "")
    case = next((name for name in re.findall(r"[a-z]+(?:-[a-z]+)+", test)), test)
    return crc32(f"{case} {dtype}".encode()) % shards


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Remember which test runs; skip one that a rehearsal's results fail."""
    global _test
    _test = pyfuncitem.nodeid
    try:
        return (yield)
    except AssertionError:
        if not pyfuncitem.config.getoption("rehearse"):
            raise
        pytest.skip(NO_RESULTS)
    finally:
        _test = ""


def _count() -> None:
    """Note CPU seconds, those of its own processes too, from a miss of the cache to the loading."""
    from triton import knobs

    began = [0.0]

    def begin(**compilation: Any) -> None:
        began[0] = _cpu_seconds()

    def end(module: int, function: int, name: str, files: Any, hash: str) -> None:
        seconds = round(_cpu_seconds() - began[0], 2)
        _compiled.append({"test": _test, "kernel": name, "key": hash, "seconds": seconds})

    knobs.runtime.jit_cache_hook = begin
    knobs.runtime.kernel_load_end_hook.add(end)


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def _rehearse() -> None:
    """Let 'triton' take CPU tensors; a test ends where it asks for what to compare with."""
    from mbt_fast.kernels import table
    from mbt_fast.ops import add_layer_norm, bias_gelu, bottleneck_attention, dispatch, residual_add
    from mbt_fast.testing import ptx

    _DEVICE.enter_context(ptx.device(ARCH, run=None))
    (row,) = (row for row in dispatch.BACKENDS if row.name == "triton")
    vars(row)["device_type"] = "cpu"
    table.arch_of = lambda tensor: ARCH
    for op in (add_layer_norm, bias_gelu, bottleneck_attention, residual_add):
        for name in (dispatch.STOCK.name, dispatch.REFERENCE.name):
            op.BY_BACKEND[name] = _ending_tests(op.BY_BACKEND[name])


def _ending_tests(implementation: Any) -> Any:
    def run(*arguments: Any) -> Any:
        if _test:
            pytest.skip(NO_RESULTS)
        return implementation.run(*arguments)

    return replace(implementation, run=run)
