"""Checkpoints are whole or not there."""

import errno
import os

import pytest

from mbt_fast.checkpoint.runs import BEST, find_checkpoint, resolve_run
from mbt_fast.errors import CheckpointError
from mbt_fast.train import checkpoints


def content(folder):
    (folder / "model.safetensors").write_bytes(b"weights")


def save(run, *steps):
    for step in steps:
        checkpoints.save(run, step, content)


def steps_of(run):
    return [checkpoints.step_of(folder) for folder in sorted(run.glob("checkpoints/step-*"))]


def test_latest_names_what_was_saved_last(tmp_path):
    assert find_checkpoint(tmp_path) is None
    save(tmp_path, 50, 100)
    assert (tmp_path / "latest").read_text() == "checkpoints/step-00000100\n"
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000100"
    assert (find_checkpoint(tmp_path) / "model.safetensors").read_bytes() == b"weights"


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_else(tmp_path):
    save(tmp_path, 50)

    def full(folder):
        content(folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError, match=r"No space left on device.*step-00000050") as raised:
        checkpoints.save(tmp_path, 100, full)
    assert "\n" not in str(raised.value)
    assert steps_of(tmp_path) == [50]
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000050"]
    assert checkpoints.step_of(find_checkpoint(tmp_path)) == 50


def test_a_failure_of_safetensors_is_one_line_too(tmp_path):
    from safetensors import SafetensorError

    def fails(folder):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(CheckpointError, match="there is none before it"):
        checkpoints.save(tmp_path, 100, fails)


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match="cannot be written: Not a directory"):
        save(tmp_path, 100)


@pytest.mark.parametrize("moment", ["written", "renamed"])
def test_a_kill_within_a_save_leaves_the_checkpoint_before(tmp_path, monkeypatch, moment):
    save(tmp_path, 50)
    name = {"written": "rename", "renamed": "replace"}[moment]

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Path, name, killed)
        with pytest.raises(Killed):
            save(tmp_path, 100)
    assert checkpoints.step_of(find_checkpoint(tmp_path)) == 50
    checkpoints.remove_leftovers(tmp_path)
    assert not list(tmp_path.glob("checkpoints/.*"))
    checkpoints.prune(tmp_path, keep=1)
    assert find_checkpoint(tmp_path).is_dir(), "what is renamed already does not count"
    save(tmp_path, 100)
    assert steps_of(tmp_path) == [50, 100]


def test_a_save_takes_the_place_of_a_checkpoint_that_latest_never_named(tmp_path):
    save(tmp_path, 100)
    (tmp_path / "latest").unlink()
    checkpoints.save(tmp_path, 100, lambda folder: (folder / "new").touch())
    assert sorted(os.listdir(find_checkpoint(tmp_path))) == ["SHA256SUMS", "new"]


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
        if step == 2:
            checkpoints.point(tmp_path, BEST, step)
        checkpoints.prune(tmp_path, keep=2)
    assert steps_of(tmp_path) == [2, 4, 5]


def test_checkpoints_that_are_still_needed_are_kept(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
        checkpoints.prune(tmp_path, keep=1, steps=[2, 4])
    assert steps_of(tmp_path) == [2, 4, 5]


def test_a_pointer_to_nothing_is_refused(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "latest").write_text("checkpoints/step-00000007\n")
    with pytest.raises(CheckpointError, match="latest must name a checkpoint"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("lost", ["missing", "empty"])
def test_without_latest_the_newest_checkpoint_is_found(tmp_path, lost):
    save(tmp_path, 1, 2, 30)
    (tmp_path / "latest").unlink() if lost == "missing" else (tmp_path / "latest").write_text("")
    (tmp_path / "checkpoints" / ".step-00000040.tmp").mkdir()
    assert checkpoints.step_of(find_checkpoint(tmp_path)) == 30
    assert checkpoints.step_of(resolve_run(tmp_path)) == 30
    assert find_checkpoint(tmp_path, BEST) is None


def test_an_empty_best_says_so(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "best").write_text("")
    with pytest.raises(CheckpointError, match="best: the run has no checkpoint yet"):
        resolve_run(tmp_path / "best")


def test_a_save_reaches_the_disk_before_latest_names_it(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    save(tmp_path, 1)
    names = [os.path.basename(path) for path in synced]
    assert sorted(names[:2]) == ["SHA256SUMS", "model.safetensors"]
    assert names[3] == "checkpoints"
    assert names[4].startswith(".latest")
    assert synced[5] == str(tmp_path)
