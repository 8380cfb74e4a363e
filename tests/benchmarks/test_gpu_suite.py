"""The GPU suite, as far as it can be rehearsed without one, and its records."""

import json
import subprocess
import sys

from benchmarks import gpu_suite, registry
from mbt_fast.cli.info import collect
from mbt_fast.kernels import sources


def test_limits_add_up_to_nine_minutes(tmp_path):
    assert sum(step.seconds for step in gpu_suite.steps(tmp_path, gpu=True)) <= 9 * 60


def test_the_guards_of_every_entry_are_among_the_tests(tmp_path):
    _, tests, *_, benchmarks = gpu_suite.steps(tmp_path, gpu=True, tree="hash")
    named = {f"tests/{part.rpartition('/')[2]}" for part in tests.command if part.endswith(".py")}
    for entry in registry.ENTRIES:
        if "cuda" in entry.seconds:
            assert set(entry.guards_on("cuda")) <= named
    reports = [part.replace("{shard}", "0") for part in tests.command if "junitxml" in part]
    assert reports[0].partition("=")[2] in benchmarks.command
    assert "junit_suite_name=hash" in tests.command


def test_sources_are_laid_out_as_installed(tmp_path):
    site = gpu_suite.lay_out(tmp_path / "site")
    stamp = gpu_suite.environment(site)
    assert len(stamp["tree"]) == 64
    expected = {k: sources.source_hash(k) for k in sources.KERNELS}
    assert stamp["sources"].items() >= expected.items()
    code = "import mbt_fast.kernels as k; print(k.__file__)"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True
    )
    assert str(site) in done.stdout


def test_a_failing_step_is_recorded_and_does_not_stop(tmp_path):
    (tmp_path / "logs").mkdir()
    step = gpu_suite.Step("x", [sys.executable, "-c", "print('seen'); raise SystemExit(3)"], 20)
    result = gpu_suite.run(step, tmp_path, tmp_path)
    assert (result["rc"], result["tails"]) == (3, ["seen\n"])
    missing = gpu_suite.Step("y", ["no-such-command"], 5)
    assert gpu_suite.run(missing, tmp_path, tmp_path)["rc"] == 127
    slow = gpu_suite.Step("z", [sys.executable, "-c", "import time; time.sleep(60)"], 1)
    assert gpu_suite.run(slow, tmp_path, tmp_path)["rc"] == 124


def test_shards_run_side_by_side_and_every_one_counts(tmp_path):
    (tmp_path / "logs").mkdir()
    code = "import os; shard = os.environ['MBT_FAST_SHARD']; print(shard); exit(shard == '1/3')"
    step = gpu_suite.Step("x", [sys.executable, "-c", code], 20, shards=3)
    result = gpu_suite.run(step, tmp_path, tmp_path)
    assert result["rc"] == 1
    assert result["tails"] == ["0/3\n", "1/3\n", "2/3\n"]


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
