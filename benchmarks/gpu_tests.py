"""How the GPU suite runs tests: few specialisations, most compiled by one process, all counted.

A plugin of pytest, ``-p benchmarks.gpu_tests``:

    --shard I/N       the I-th of N parts; neighbours, which compile the same kernels, stay together
    --compiled FILE   write what Triton compiled: test, kernel, key and CPU seconds of each; in a
                      rehearsal all kernels that a test launches, whoever compiled them
    --rehearse        without a GPU: Triton compiles for sm_90, and nothing is launched

A rehearsal shows that tests reach their launches, and how long compilers take. Results mean nothing
in it, so a test that asks for what to compare them with is skipped there.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ARCH = 90
DTYPES = ("bfloat16", "float16", "float32")  # a test runs in the first that it has
NAMED = ("two-streams", "mbt_base", "saturated")  # these in all
SEEDS = 2  # of random calls
# What torch does with operators; and the meaning of ops, which the interpreter compares as well.
ELSEWHERE = ("test_transforms.py", "test_it_means_what_it_should")
NO_RESULTS = "a rehearsal has no results to compare"

_DEVICE = ExitStack()
_compiled: list[dict[str, Any]] = []
_by_function: dict[int, dict[str, Any]] = {}  # by Triton's handle of a loaded kernel
_test = ""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options above."""
    group = parser.getgroup("mbt_fast")
    group.addoption("--shard", default="0/1")
    group.addoption("--compiled", type=Path)
    group.addoption("--rehearse", action="store_true")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before any conftest or test asks which backends are there."""
    if early_config.known_args_namespace.rehearse:
        _rehearse()


def pytest_configure(config: pytest.Config) -> None:
    """Count from now on."""
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
    """Leave out more of the same, and what other processes run."""
    chosen = needed([item.nodeid for item in items])
    few = [item for item in items if item.nodeid in chosen]
    kept = part(few, *map(int, config.getoption("shard").split("/")))
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def needed(tests: Sequence[str]) -> set[str]:
    """All tests but those of Triton's kernels that repeat others in other dtypes or on numbers."""
    chosen = {}
    for test in sorted(tests, key=_preference):
        seed = re.search(r"(?:test_random_call\[|random-)(\d+)", test)
        if "triton" not in test or any(name in test for name in NAMED):
            chosen[test] = test
        elif not (seed and int(seed[1]) >= SEEDS) and not any(name in test for name in ELSEWHERE):
            chosen.setdefault(re.sub("|".join(DTYPES), "", test), test)
    return set(chosen.values())


def _preference(test: str) -> int:
    return next((rank for rank, dtype in enumerate(DTYPES) if dtype in test), 0)


def part(tests: list[Any], index: int, count: int) -> list[Any]:
    """The ``index``-th of ``count`` parts, as equal as can be."""
    return tests[index * len(tests) // count : (index + 1) * len(tests) // count]


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
        if pyfuncitem.config.getoption("rehearse"):
            _note_launches()
        _test = ""


def _count() -> None:
    """Note CPU seconds, those of its own processes too, from a miss of the cache to the loading."""
    from triton import knobs

    began = [0.0]

    def begin(**compilation: Any) -> None:
        began[0] = _cpu_seconds()

    def end(module: int, function: int, name: str, files: Any, hash: str) -> None:
        seconds = round(_cpu_seconds() - began[0], 2)
        entry = {"test": _test, "kernel": name, "key": hash, "seconds": seconds}
        _by_function[function] = entry
        _compiled.append(entry)

    knobs.runtime.jit_cache_hook = begin
    knobs.runtime.kernel_load_end_hook.add(end)


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def _note_launches() -> None:
    """Of this test, but for the kernels that it compiled itself."""
    launches = _driver().launches
    for function in dict.fromkeys(launch.function for launch in launches):
        entry = _by_function.get(function)
        if entry and entry["test"] != _test:
            _compiled.append(entry | {"test": _test})
    launches.clear()


def _driver() -> Any:
    from triton.runtime import driver

    return driver.active


def _rehearse() -> None:
    """Let 'triton' take CPU tensors; a test ends where it asks for what to compare with."""
    from mbt_fast import dispatch
    from mbt_fast.kernels import table
    from mbt_fast.testing import ptx

    _DEVICE.enter_context(ptx.device(ARCH, run=None))
    table.arch_of = lambda tensor: ARCH
    for row in dispatch.BACKENDS:
        if row.name == "triton":
            vars(row)["device_type"] = "cpu"
        elif row.launchers is None:  # torch's own functions
            vars(row)["unsupported"] = partial(_end_test, row)


def _end_test(row: Any, call: Any) -> Any:
    if _test:
        pytest.skip(NO_RESULTS)
    return type(row).unsupported(row, call)
