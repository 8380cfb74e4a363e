"""A corrupt checkpoint: noticed, kept aside, and the run goes on from the one before."""

import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from mbt_fast.checkpoint.checksums import SUMS_FILE, check_checksums, write_checksums
from mbt_fast.checkpoint.runs import BEST, find_checkpoint, named
from mbt_fast.cli.main import main
from mbt_fast.errors import CheckpointError, InputError
from mbt_fast.train import checkpoints, train
from mbt_fast.train.log import read
from mbt_fast.train.recovery import last_whole
from mbt_fast.train.run import Run

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.safetensors"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


def save(run, *steps):
    for step in steps:
        checkpoints.save(run, step, lambda to: (to / WEIGHTS).write_bytes(b"weights"))


def folder(run, step):
    return checkpoints.folder_of(run, step)


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    """A run with checkpoints of steps 9 and 12, the best one of step 8 or 12 beside them."""
    from mbt_fast.train import TrainConfig, report

    run = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda *_: None)
        train(TrainConfig.from_toml(clips / "recipe.toml"), run)
    return run


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


@pytest.mark.parametrize("damage", [truncate, flip, empty, remove])
@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, "config.json", "state.json"])
def test_damage_of_any_file_is_noticed_and_names_it(run, damage, name):
    last = find_checkpoint(run)
    check_checksums(last)
    damage(last / name)
    with pytest.raises(CheckpointError, match=name):
        check_checksums(last)


@pytest.mark.parametrize("damage", [truncate, flip, remove])
def test_a_run_falls_back_to_the_checkpoint_before(whole, run, configure, capsys, damage):
    last = find_checkpoint(run)
    before = folder(run, 9)
    assert before.is_dir()
    damage(last / WEIGHTS)
    left = sorted(path.name for path in last.iterdir())
    train(configure(), run)
    (line,) = (text for text in capsys.readouterr().out.splitlines() if "warning" in text)
    assert line.startswith(f"warning: the run goes on from step 9: {last / WEIGHTS}: ")
    assert line.endswith("; kept as corrupt-step-00000012")
    kept = last.with_name("corrupt-step-00000012")
    assert sorted(path.name for path in kept.iterdir()) == left, "nothing of it is lost"
    assert find_checkpoint(run) == last
    for name in (WEIGHTS, OPTIMIZER):
        actual, expected = load_file(last / name), load_file(find_checkpoint(whole) / name)
        assert all(torch.equal(actual[key], expected[key]) for key in expected)
    steps = [[r["step"] for r in read(r / "log.jsonl")] for r in (run, whole)]
    assert steps[0] == steps[1]
    assert (run / BEST).read_text() == (whole / BEST).read_text()


def test_a_run_falls_back_when_the_last_checkpoint_is_gone(run, configure, capsys):
    shutil.rmtree(find_checkpoint(run))
    assert train(configure(), run).step == 12
    assert "goes on from step 9" in capsys.readouterr().out
    assert checkpoints.step_of(find_checkpoint(run)) == 12


def test_of_several_corrupt_checkpoints_each_is_named(tmp_path, capsys):
    save(tmp_path, 1, 2, 3)
    for step, damage in ((2, remove), (3, flip)):
        damage(folder(tmp_path, step) / WEIGHTS)
    found = last_whole(tmp_path)
    assert found.folder == folder(tmp_path, 1)
    assert named(tmp_path, "latest") == folder(tmp_path, 3), "looking changes nothing"
    found.mend()
    lines = capsys.readouterr().out.splitlines()
    assert ["step-00000003" in lines[0], "step-00000002" in lines[1]] == [True, True]
    assert find_checkpoint(tmp_path) == folder(tmp_path, 1)
    assert last_whole(tmp_path).corrupt == {}


def test_best_does_not_name_a_corrupt_checkpoint(tmp_path):
    save(tmp_path, 1, 2)
    checkpoints.point(tmp_path, BEST, 2)
    flip(folder(tmp_path, 2) / WEIGHTS)
    last_whole(tmp_path).mend()
    assert find_checkpoint(tmp_path, BEST) is None


def test_a_checkpoint_that_is_corrupt_again_is_kept_too(tmp_path):
    save(tmp_path, 1)
    for _ in range(3):
        save(tmp_path, 2)
        flip(folder(tmp_path, 2) / WEIGHTS)
        last_whole(tmp_path).mend()
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    aside = {f"corrupt-step-00000002{number}" for number in ("", "-2", "-3")}
    assert names == {"step-00000001"} | aside


def test_a_checkpoint_that_another_process_saves_meanwhile_is_not_passed_over(tmp_path):
    """It may have removed the one that is looked at, which then seems to be corrupt."""
    save(tmp_path, 1, 2)
    remove(folder(tmp_path, 2) / WEIGHTS)
    found = last_whole(tmp_path)
    save(tmp_path, 3)
    with pytest.raises(InputError, match="another process has saved a checkpoint meanwhile"):
        found.mend()
    assert find_checkpoint(tmp_path) == folder(tmp_path, 3)


def test_a_run_of_which_no_checkpoint_is_whole_says_so_and_changes_nothing(run, configure):
    for path in run.glob(f"checkpoints/step-*/{WEIGHTS}"):
        flip(path)
    before = sorted(run.rglob("*"))
    with pytest.raises(CheckpointError, match="must have a whole checkpoint to go on") as raised:
        train(configure(), run)
    assert "step-00000009" in str(raised.value)
    assert "step-00000012" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert sorted(run.rglob("*")) == before


def test_a_checkpoint_after_latest_does_not_count(tmp_path):
    save(tmp_path, 1, 2)
    checkpoints.point(tmp_path, "latest", 1)
    assert last_whole(tmp_path).folder == folder(tmp_path, 1)


def test_without_a_checkpoint_a_run_begins(tmp_path):
    assert last_whole(tmp_path).folder is None


def test_a_checkpoint_without_checksums_is_taken_as_it_is(tmp_path):
    save(tmp_path, 1, 2)
    (folder(tmp_path, 2) / SUMS_FILE).unlink()
    assert last_whole(tmp_path).folder == folder(tmp_path, 2)


@pytest.mark.parametrize("damage", [truncate, empty])
def test_damaged_checksums_are_refused(tmp_path, damage):
    save(tmp_path, 1)
    damage(folder(tmp_path, 1) / SUMS_FILE)
    with pytest.raises(CheckpointError, match="must be a list of SHA-256 sums"):
        check_checksums(folder(tmp_path, 1))


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_the_usual_tool_checks_the_files(tmp_path):
    (tmp_path / "a b.safetensors").write_bytes(b"weights")
    write_checksums(tmp_path)
    command = ["sha256sum", "--check", "--strict", SUMS_FILE]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    flip(tmp_path / "a b.safetensors")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1


def test_an_average_of_a_corrupt_checkpoint_is_refused(configure, tmp_path, monkeypatch):
    average = Run._average_last

    def damaged(self):
        flip(folder(tmp_path, 8) / WEIGHTS)
        average(self)

    monkeypatch.setattr(Run, "_average_last", damaged)
    with pytest.raises(CheckpointError, match=rf"step-00000008.{WEIGHTS}: has changed"):
        train(configure("train.average_last=2"), tmp_path)


@pytest.mark.parametrize("damage", [truncate, remove])
@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "state.json"])
def test_eval_and_predict_name_the_corrupt_file(run, clips, capsys, damage, name):
    last = find_checkpoint(run)
    damage(last / name)
    clip = next(clips.glob("clips/*.mp4"))
    for command in (["eval", run, clips / "val.csv"], ["predict", clip, "--checkpoint", run]):
        assert main([str(word) for word in command]) == 2
        assert str(last / name) in capsys.readouterr().err
