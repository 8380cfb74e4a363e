"""Devices, seeds, and fresh memory that is never zero by luck."""

import os

import pytest
import torch


def pytest_collection_modifyitems(config, items):
    """Skip what needs a GPU; with MBT_FAST_SHARD=i/n keep every n-th test from the i-th on."""
    shard, _, count = os.environ.get("MBT_FAST_SHARD", "0/1").partition("/")
    others = [item for index, item in enumerate(items) if index % int(count) != int(shard)]
    items[:] = items[int(shard) :: int(count)]
    config.hook.pytest_deselected(items=others)
    for item in items:
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
