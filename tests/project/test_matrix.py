"""The matrix of stacks: what it runs, how it reads pytest, and the page of what it recorded."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def matrix():
    return load(ROOT / ".ci" / "matrix.py")


def test_each_compiler_and_each_version_is_a_stack(matrix):
    found = matrix.stacks(["a", "b"], ["g++", "none"], ["av=17.0.0,19.0.2"])
    assert [(stack.python, stack.cxx, *stack.packages) for stack in found] == [
        (python, *rest)
        for python in "ab"
        for rest in (("g++",), ("none",), ("g++", "av==17.0.0"), ("g++", "av==19.0.2"))
    ]


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("...\n3 passed, 2 skipped in 0.1s", {"passed": 3, "skipped": 2, "names": []}),
        (
            "FAILED tests/a.py::test_b[x] - E\n1 failed, 2 passed in 1s",
            {"failed": 1, "passed": 2, "names": ["tests/a.py::test_b[x]"]},
        ),
        ("ERROR tests/a.py\n1 error in 2s", {"error": 1, "names": ["tests/a.py"]}),
        ("Segmentation fault", {"error": 1, "names": []}),
        ("", {"error": 1, "names": []}),
    ],
)
def test_what_pytest_says_is_counted(matrix, output, found):
    assert matrix._outcome(output) == found


def test_a_row_replaces_that_of_the_same_stack_and_stands_on_the_page(
    matrix, tmp_path, monkeypatch
):
    versions = dict.fromkeys(("torch", "triton", "av", "numpy"), "1.2")
    facts = {"python": "3.12.1", **versions, "kernels": "avx2", "compiler": "none"}
    results = iter([{"failed": 1, "names": ["tests/a.py::b"]}, {"passed": 7, "names": []}])

    def run_stack(stack, tests, interpreted):
        found = next(results)
        return {**facts, "areas": tests, "tests": found, "interpreted": {}} | {
            "date": "2026-01-31",
            "commit": "0123456789",
        }

    record = tmp_path / "tested.json"
    monkeypatch.setattr(matrix, "run_stack", run_stack)
    arguments = ["--record", str(record), "--cxx", "none", "--tests", "tests/ops"]
    monkeypatch.setattr(sys, "argv", ["matrix.py", *arguments])
    assert matrix.main() == 1
    assert matrix.main() == 0
    assert len(json.loads(record.read_text())) == 1
    page = load(ROOT / "docs" / "tested.py")
    monkeypatch.setattr(page, "RECORD", record)
    line = page.page().splitlines()[-1]
    cells = ("3.12.1", *["1.2"] * 4, "none", "avx2", "ops", "7 passed", "not run", "2026-01-31")
    assert line == f"| {' | '.join(cells)} | `0123456789` |"
