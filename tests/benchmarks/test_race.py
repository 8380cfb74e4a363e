"""``race``: what it refuses, what it times, what it keeps; and one run of pytest-benchmark."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

from benchmarks import conftest
from benchmarks.calls import backward, doubled
from mbt_fast import dispatch

ROOT = Path(__file__).parents[2]


class Benchmark:
    """pytest-benchmark's fixture, as far as ``race`` uses it, with a clock of its own."""

    enabled, name = True, "test_x"

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, target, setup, rounds):
        data = []
        for _ in range(rounds):
            setup()
            start = conftest.clock()()
            target()
            data.append(conftest.clock()() - start)
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=data))


class Config:
    def __init__(self):
        self.stash = {conftest.CEILINGS: {str(torch.get_num_threads()): {}}}

    def getoption(self, name):
        return {"--seconds": 0.01, "--tiny": False}[name]


@pytest.fixture
def race():
    return conftest.Race(Benchmark(), Config())


X = torch.linspace(-2, 2, 64)
FACTS = {"dtype": "float32", "shape": {}}


def called(log, name, result):
    def run():
        log.append(name)
        return result

    return run


def test_a_wrong_result_is_not_timed(race):
    for wrong in (X.sin() + 1e-3, X.sin()[1:], X.sin().double(), X * float("nan")):
        with pytest.raises(AssertionError):
            race(lambda w=wrong: w, {"eager": X.sin}, exact=X.double().sin, **FACTS)


def test_every_round_has_all_variants(race):
    log = []
    variants = {name: called(log, name, X.sin()) for name in ("ours", "a", "b", "c")}
    others = {name: variants[name] for name in ("a", "b")}
    exact = X.double().sin
    race(variants["ours"], others, unequal={"c": variants["c"]}, exact=exact, **FACTS)
    info = race._benchmark.extra_info
    rounds = [set(log[-4 * i :][:4]) for i in range(1, info["rounds"])]
    assert rounds == [{"ours", "a", "b", "c"}] * len(rounds)
    assert info["baseline"] == "a"
    assert info["ms"].keys() == {"ours", "a", "b", "c"}
    assert info["times_faster"].keys() == {"a", "b", "c"}


def test_a_baseline_that_fails_or_is_wrong_is_left_out_with_the_reason(race):
    def absent():
        raise ModuleNotFoundError("No module named 'absent'")

    others = {"eager": X.sin, "absent": absent, "wrong": X.cos}
    race(X.sin, others, unequal={"broken": absent}, exact=X.double().sin, **FACTS)
    info = race._benchmark.extra_info
    assert info["times_faster"].keys() == {"eager"}
    assert info["not_run"].keys() == {"absent", "wrong", "broken"}
    assert info["not_run"]["absent"] == "ModuleNotFoundError: No module named 'absent'"


def run_benchmarks(*options, **variables):
    """What pytest says; in a worker of pytest-xdist nothing would be timed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks"]
    done = subprocess.run(
        [*command, *options],
        cwd=ROOT,
        env={**environment, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_backend_that_cannot_run_is_skipped_with_its_reasons():
    options = ["-k", "host_cost and float32", "--benchmark-disable"]
    said = run_benchmarks(*options, MBT_FAST_CPU="none")
    assert "1 skipped" in said
    assert "ours does not run here: backend 'cpu' cannot run this call" in said


def test_summary_is_of_one_call_and_of_the_quickest_fifth():
    seconds = {"ours": [0.002] + 9 * [0.01], "eager": [0.006, 0.006] + 8 * [0.02]}
    found = conftest.summarise({name: times[:5] for name, times in seconds.items()}, calls=2)
    assert found["ms"]["ours"] == {"quick": 1.0, "median": 5.0}
    assert found["times_faster"]["eager"] == {"quick": 3.0, "median": 2.0}
    assert conftest.quickest_fifth(seconds["eager"]) == 0.006


def test_gradients_are_of_the_same_random_numbers_in_float64():
    inputs = [X, X.flip(0)]
    half = backward(torch.mul, inputs, torch.bfloat16)()
    wide = backward(torch.mul, doubled(inputs), torch.bfloat16)()
    torch.testing.assert_close([g.double() for g in half], list(wide))
    assert torch.equal(half[0], backward(torch.mul, inputs, torch.bfloat16)()[0])


def test_ceilings_are_those_of_products_and_copies():
    rates = conftest.measure_ceilings(64, 0.0)
    assert rates.keys() == {"bfloat16", "float32", "copy"}
    assert min(rates.values()) > 0


def test_a_run_writes_a_record_of_machine_commit_and_ratios(tmp_path):
    (cpu,) = (row for row in dispatch.BACKENDS if row.name == "cpu")
    if cpu.unavailable():
        pytest.skip(f"no kernel to measure: {'; '.join(cpu.unavailable())}")
    path = tmp_path / "1.json"
    options = ["-k", "other_baselines and float32 or large_logits", "--tiny"]
    said = run_benchmarks(*options, f"--benchmark-json={path}")
    assert "test_large_logits[float32-cpu]" in said
    assert "threads: sdpa" in said
    record = json.loads(path.read_text())
    machine = record["machine_info"]
    assert {"device", "torch", "threads", "instruction_set", "compiled_part"} <= machine.keys()
    assert "node" not in machine
    assert record["commit_info"]["id"]
    assert record["ceilings"]
    for benchmark in record["benchmarks"]:
        assert "data" not in benchmark["stats"]
        assert benchmark["extra_info"]["times_faster"]["sdpa"]["quick"] > 0
