"""Devices, seeds, markers, and fresh memory that is never zero by luck."""

import os
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
MARKERS = {  # by file; a test may have others of its own
    "models/test_distributed.py": "distributed",
    "models/test_training_curves.py": "slow",
    "project/test_build.py": "slow",
}
SLOW = {"aot", "distributed", "exhaustive", "native"}
# Fixtures that take long: all tests of one of these stay in one worker of pytest-xdist.
BUILT_ONCE = ("wheel",)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Mark by file, keep shared builds together, and skip what needs a GPU."""
    for item in items:
        mark(item)


def mark(item):
    """Add the markers of one test."""
    path = item.path.relative_to(TESTS).as_posix() if item.path.is_relative_to(TESTS) else ""
    for pattern, marker in MARKERS.items():
        if fnmatch(path, pattern):
            item.add_marker(marker)
    if any(item.get_closest_marker(marker) for marker in SLOW):
        item.add_marker("slow")
    for name in BUILT_ONCE:
        if name in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group(name))
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        item.add_marker(pytest.mark.skip(reason="no CUDA device is available"))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def poison_empty(monkeypatch):
    """Fill fresh float memory with NaN, so that an output nobody wrote fails a test."""

    def poisoned(allocate):
        def wrapper(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return wrapper

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))


@pytest.fixture
def fresh_dynamo():
    """Compile as if nothing had been compiled before."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def inductor():
    """Skip where torch's Inductor has no compiler; on a CPU it writes C++."""
    compiler = os.environ.get("CXX", "g++")
    if not torch.cuda.is_available() and shutil.which(compiler) is None:
        pytest.skip(f"Inductor needs a C++ compiler, and {compiler!r} is not found")
