"""The instruction set of the CPU kernel under test."""

import pytest


@pytest.fixture(autouse=True)
def instruction_set(request, monkeypatch):
    """Choose that of the test's ``kernel``."""
    if "kernel" in request.fixturenames:
        monkeypatch.setenv("MBT_FAST_CPU", request.getfixturevalue("kernel").instruction_set or "")
