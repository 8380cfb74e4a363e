"""The GPU suite, as far as it can be rehearsed without one, and its records."""

import importlib.util
import json
import subprocess
import sys
import sysconfig
import tarfile
from itertools import chain

import pytest

from benchmarks import gpu_results, gpu_suite
from mbt_fast.cli.info import collect
from mbt_fast.kernels import sources


@pytest.mark.parametrize("part", [1, 2])
def test_limits_of_a_part_add_up_to_five_and_a_half_minutes(part, tmp_path):
    steps = gpu_suite.steps(tmp_path, gpu=True)
    assert sum(step.seconds for step in steps if step.part == part) <= 330
    assert [step.part for step in steps] == sorted(step.part for step in steps)


def test_rehearsed_compilations_leave_half_of_the_time_of_the_tests(tmp_path):
    """By the record of a rehearsal, if a core of the GPU's machine compiles as fast as ours."""
    rehearsed = json.loads((gpu_suite.ROOT / "benchmarks/results/aot/gpu_suite.json").read_text())
    (tests,) = (s for s in gpu_suite.steps(tmp_path, gpu=True) if s.name == "correctness")
    assert 0 < rehearsed["core_seconds_of_the_longest_shard"] < tests.seconds / 2


def test_files_and_folders_of_the_steps_exist(tmp_path):
    for step in gpu_suite.steps(tmp_path, gpu=True):
        for word in chain.from_iterable(step.commands):
            if word.startswith(("tests/", "benchmarks/")) and " " not in word:
                assert (gpu_suite.ROOT / word).exists(), word


def test_sources_are_laid_out_as_installed(tmp_path):
    site = gpu_suite.lay_out(tmp_path / "site")
    machine = gpu_suite.describe(site)
    assert (
        machine["sources"].items() >= {k: sources.source_hash(k) for k in sources.KERNELS}.items()
    )
    command = [sys.executable, "-P", "-c", "import mbt_fast.kernels as k; print(k.__file__)"]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True
    )
    assert str(site) in done.stdout


def test_cuda_kernels_that_do_not_load_or_are_of_other_sources_are_not_taken(tmp_path, monkeypatch):
    site = gpu_suite.lay_out(tmp_path / "site")
    built = site / "mbt_fast" / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    if built.exists():
        monkeypatch.setattr(gpu_suite, "cuda_sources", lambda: sources_of(built))
        assert gpu_suite.has_cuda(site)
        monkeypatch.setattr(gpu_suite, "cuda_sources", lambda: "of other sources")
        assert not gpu_suite.has_cuda(site)
        assert not built.exists()
    built.write_bytes(b"no library")
    assert not gpu_suite.has_cuda(site)
    assert not built.exists()


def sources_of(library):
    spec = importlib.util.spec_from_file_location("_cuda", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.sources


def test_a_failing_step_is_recorded_and_does_not_stop(tmp_path):
    (tmp_path / "logs").mkdir()

    def run(name, *commands, seconds=20):
        return gpu_suite.run(gpu_suite.Step(name, 1, seconds, [*commands]), tmp_path)["rc"]

    python = [sys.executable, "-c"]
    good, bad, slow = "print(1)", "print(2); exit(3)", "import time; time.sleep(60)"
    assert run("x", [*python, good], [*python, bad], [*python, good]) == [0, 3, 0]
    logs = sorted((tmp_path / "logs").glob("x-*"))
    assert [log.read_text() for log in logs] == ["1\n", "2\n", "1\n"]
    assert run("y", ["no-such-command"]) == [127]
    assert run("z", [*python, slow], [*python, slow], seconds=1) == [124, 124]


def test_all_results_come_in_one_archive_after_every_step(tmp_path, monkeypatch):
    seen = []

    def steps(work, gpu):
        for name, part in (("one", 1), ("correctness", 1), ("two", 2)):
            seen.append((tmp_path / "suite.tar.gz").exists())
            yield gpu_suite.Step(name, part, 20, [[sys.executable, "-c", f"print('{name}')"]])

    monkeypatch.setattr(gpu_suite, "steps", steps)
    assert gpu_suite.main(["--out", str(tmp_path), "--part", "1"]) == 0
    assert seen == [False, True, True]
    with tarfile.open(tmp_path / "suite.tar.gz") as archive:
        names = archive.getnames()
        document = json.load(archive.extractfile("suite.json"))
    assert {"suite.json", "logs/one-0.log", "logs/correctness-0.log"} <= set(names)
    assert [step["name"] for step in document["steps"]] == ["one", "correctness"]
    assert set(document["verified"].values()) == {False}
    assert [path.name for path in tmp_path.iterdir()] == ["suite.tar.gz"]


LOG = """
tests/ops/test_bias_gelu.py::test_a[triton] PASSED [ 1%]
tests/ops/test_residual_add.py::test_a[triton] PASSED [ 2%]
tests/ops/test_residual_add.py::test_b[triton-two words] FAILED [ 3%]
tests/kernels/test_cuda_kernels.py::test_a PASSED [ 4%]
tests/kernels/test_cuda_kernels.py::test_b SKIPPED (no reason) [ 5%]
tests/ops/test_x.py::test_other PASSED [ 6%]
tests/ops/test_layer_ops.py::test_c[residual_add-no-slots-triton] FAILED [ 7%]
"""


def test_each_kernel_is_verified_on_its_own():
    kernels = ("bias_gelu", "residual_add", "bottleneck_attention", "cuda")

    def verified(*logs, collected=""):
        outcomes = gpu_results.read_outcomes(collected, logs)
        return {k for k in kernels if gpu_results.is_verified(k, outcomes, kernels)}

    assert verified(LOG) == {"bias_gelu", "cuda"}
    assert verified(LOG, "tests/kernels/test_triton_layer.py::test_of_all FAILED") == {"cuda"}
    not_run = (
        "tests/kernels/test_cuda_kernels.py::test_a\ntests/kernels/test_cuda_kernels.py::test_c"
    )
    assert verified(LOG, collected=not_run) == {"bias_gelu"}


def test_a_kernel_that_two_shards_compile_costs_both_and_is_counted_once():
    def entry(key, seconds):
        return {"test": "t", "kernel": "k", "key": key, "seconds": seconds}

    first, second = [entry("a", 2.0), entry("b", 1.0)], [entry("a", 0.1), entry("c", 3.0)]
    assert gpu_results.compiled([first, second, []]) == {
        "specialisations": 3,
        "compilations": 4,
        "core_seconds": 6.0,
        "core_seconds_of_the_longest_shard": 5.0,
    }


def test_a_rehearsal_in_one_process_tells_what_each_part_compiles(monkeypatch):
    monkeypatch.setattr(gpu_results, "SHARDS", 2)
    launches = [("t", "a"), ("t", "b"), ("u", "a"), ("v", "a"), ("v", "c"), ("w", "c")]
    entries = [{"test": t, "kernel": "k", "key": key, "seconds": 1.0} for t, key in launches]
    first, second = gpu_results.parts(entries)
    assert [entry["key"] for entry in first] == ["a", "b"]
    assert [entry["key"] for entry in second] == ["a", "c"]


def test_tests_that_should_run_are_collected(tmp_path):
    (step,) = (s for s in gpu_suite.steps(tmp_path, gpu=True) if s.name == "correctness")
    (tmp_path / "logs").mkdir()
    gpu_suite.lay_out(tmp_path / "site")
    words = [w for w in step.commands[0] if w not in gpu_suite.TESTS[:2]]
    few = step._replace(commands=[words])
    assert gpu_suite.run(gpu_suite.collecting(few), tmp_path)["rc"] == [0]
    collected = (tmp_path / "logs" / "collection-0.log").read_text()
    outcomes = gpu_results.read_outcomes(collected, [])
    assert len(outcomes) > 10
    assert set(outcomes.values()) == {"none"}


def test_every_kernel_source_belongs_to_a_kernel():
    named = {name for files in sources.KERNELS.values() for name in files}
    others = {"__init__.py", "sources.py"}
    assert {path.name for path in sources.FOLDER.glob("*.py")} == named | others


def test_hash_follows_the_source(monkeypatch, tmp_path):
    before = sources.source_hash("bottleneck_attention")
    for name in sources.KERNELS["bottleneck_attention"]:
        (tmp_path / name).write_bytes((sources.FOLDER / name).read_bytes())
    monkeypatch.setattr(sources, "FOLDER", tmp_path)
    assert sources.source_hash("bottleneck_attention") == before
    with open(tmp_path / "tiles.py", "a") as file:
        file.write("\n")
    assert sources.source_hash("bottleneck_attention") != before


def test_info_says_what_the_records_say(monkeypatch, tmp_path):
    name = "triton bottleneck_attention"
    record = tmp_path / "verified.json"
    monkeypatch.setattr(sources, "RECORD", record)
    present = {"bottleneck_attention": sources.source_hash("bottleneck_attention")}
    entry = {"device": "NVIDIA X", "date": "2026-01-01", "triton": "3.6.0", "sources": present}
    record.write_text(json.dumps([entry]))
    assert collect()["kernels verified on a GPU"][name] == "NVIDIA X, 2026-01-01, Triton 3.6.0"
    entry["sources"] = {"bottleneck_attention": "of other sources"}
    record.write_text(json.dumps([entry]))
    assert "never run on a GPU" in collect()["kernels verified on a GPU"][name]
