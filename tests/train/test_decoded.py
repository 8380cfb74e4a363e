"""The cache of decoded clips: the same run with it as without, and nothing half when it is cut."""

import errno
import json
import os
import pickle
import subprocess
import sys
import threading
import time

import pytest
import torch

from mbt_fast.data import Clip, ClipTransform
from mbt_fast.data.manifest import Manifest
from mbt_fast.errors import ClipError, InputError, RunError
from mbt_fast.train import decoded, train
from mbt_fast.train.clip_cache import cache_key
from mbt_fast.train.decoded import CentreWindows, cached
from mbt_fast.train.views import ClipViews

PATCHES = {"rgb": (1, 16, 16), "spectrogram": (16, 16)}
TRANSFORM = ClipTransform((2, 32, 32), (48, 32), patch_size=PATCHES)
FIXED = ("augment.window=centre", "augment.crop=centre", "augment.scale=[1, 1]")


def never():
    return False


def always():
    return True


@pytest.fixture
def windows(clips):
    return CentreWindows(Manifest.read(clips / "train.csv"), TRANSFORM)


def fill(windows, folder, workers=0, stop=never):
    return cached(windows, folder, workers=workers, stop=stop)


def same(one, other):
    if isinstance(one, ClipError):
        return str(one) == str(other)
    tensors = [(one.inputs, other.inputs), (one.lengths, other.lengths)]
    return all(
        list(a) == list(b) and all(torch.equal(a[m], b[m]) and a[m].dtype == b[m].dtype for m in a)
        for a, b in tensors
    ) and all(
        getattr(one, name) == getattr(other, name)
        for name in ("path", "transform", "duration", "formats", "starts", "skipped", "faults")
    )


def read(cache, row):
    try:
        return cache[row]
    except ClipError as error:
        return error


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_clip_comes_back_as_it_was_decoded(clips, tmp_path, whole, workers):
    windows = CentreWindows(Manifest.read(clips / "train.csv"), TRANSFORM, whole=whole)
    cache = pickle.loads(pickle.dumps(fill(windows, tmp_path, workers)))
    plain = [windows[row] for row in range(len(windows))]
    assert any(isinstance(clip, ClipError) for clip in plain)
    assert any("spectrogram" not in clip.inputs for clip in plain if isinstance(clip, Clip))
    assert all(same(clip, read(cache, row)) for row, clip in enumerate(plain))


def test_a_cache_without_patches_or_pictures(clips, tmp_path):
    transform = ClipTransform(None, (48, 32))
    windows = CentreWindows(Manifest.read(clips / "train.csv"), transform)
    cache = fill(windows, tmp_path)
    assert all(same(windows[row], read(cache, row)) for row in range(len(windows)))


def test_a_run_with_a_cache_is_the_run_without(configure, tmp_path, monkeypatch):
    def run(name, *options):
        outcome = train(configure(*FIXED, *options), tmp_path / name)
        weights = tmp_path / name / (tmp_path / name / "latest").read_text().strip()
        broken = (tmp_path / name / "broken.jsonl").read_text()
        return outcome, (weights / "model.safetensors").read_bytes(), broken

    plain = run("plain", "eval.views=1")
    assert plain[2], "clips that cannot be read are met"
    filled = run("filled", "eval.views=1", f"data.cache={tmp_path / 'cache'}")
    monkeypatch.setattr(decoded, "read_window", None)  # which a second run does not need
    monkeypatch.setattr("mbt_fast.train.views.load_clip", None)
    kept = run("kept", "eval.views=1", f"data.cache={tmp_path / 'cache'}", "data.workers=1")
    assert plain == filled == kept
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2, "train and val"


def test_the_key_is_of_all_that_decoding_depends_on(clips, tmp_path, monkeypatch):
    lines = (clips / "train.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    file = tmp_path / "own.mp4"
    file.write_bytes(b"one")

    def key(*, path=file, label="x", start=0, transform=TRANSFORM, **options):
        manifest = tmp_path / "key.csv"
        manifest.write_text(f"path,id,labels,start\n{path},a,{label},{start}\n")
        options = {"errors": "strict", "whole": False} | options
        return cache_key(Manifest.read(manifest), transform, **options)

    first = key()
    assert key(label="y") == first
    others = {
        key(path=clips / rows[0][0]),
        key(start=1),
        key(transform=ClipTransform((2, 32, 32), (48, 32), patch_size=PATCHES, mean=0.0)),
        key(errors="tolerate"),
        key(whole=True),
    }
    os.utime(file, ns=(0, 0))
    others.add(key())
    file.write_bytes(b"other")
    os.utime(file, ns=(0, 0))
    others.add(key())
    with monkeypatch.context() as patch:  # a superuser may read whatever its mode is
        patch.setattr(os, "access", lambda *_: False)
        others.add(key())
    file.unlink()
    others.add(key())
    assert len(others - {first}) == 9


def test_a_stop_while_it_is_filled_leaves_nothing(windows, tmp_path):
    asked = iter([False] * 5)
    assert fill(windows, tmp_path, stop=lambda: next(asked, True)) is None
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    assert fill(windows, tmp_path) is not None


def test_a_run_that_is_stopped_while_it_fills_can_go_on(configure, tmp_path, monkeypatch):
    options = (*FIXED, "train.steps=2", "eval.views=1", f"data.cache={tmp_path / 'cache'}")
    monkeypatch.setattr("mbt_fast.train.parts.cached", lambda *_, stop, **__: stop._note(15, None))
    outcome = train(configure(*options), tmp_path / "run")
    assert (outcome.step, outcome.stopped_by) == (0, "SIGTERM")
    monkeypatch.undo()
    assert train(configure(*options, "checkpoint.best=false"), tmp_path / "run").step == 2


def test_a_full_disk_is_one_line_and_leaves_nothing(windows, tmp_path):
    resource = pytest.importorskip("resource", reason="limits the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"data\.cache must be a folder that can be filled"):
            fill(windows, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_want_of_descriptors_while_clips_are_read_is_none_of_the_cache(
    windows, tmp_path, monkeypatch
):
    def fails(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files", "clip.mp4")

    monkeypatch.setattr(decoded, "read_window", fails)
    with pytest.raises(RunError, match=r"cannot be read: .*Too many open files: 'clip\.mp4'"):
        fill(windows, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_a_folder_that_is_a_file_is_named(windows, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"data\.cache must be a folder .*file"):
        fill(windows, tmp_path / "file")


def test_a_cache_that_is_there_is_read_where_nothing_can_be_written(windows, tmp_path):
    lock = fill(windows, tmp_path).path.with_suffix(".lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()  # now it cannot be opened, by a superuser neither
    assert isinstance(fill(windows, tmp_path)[0], Clip)


def test_a_cache_that_was_cut_off_is_named(windows, tmp_path):
    path = fill(windows, tmp_path).path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"data\.cache must hold whole files.*{path.name}"):
        fill(windows, tmp_path)


def test_what_a_killed_process_left_is_removed(windows, tmp_path):
    path = fill(windows, tmp_path).path
    path.unlink()
    leftover = tmp_path / f".{path.name}.123.tmp"
    leftover.touch()
    assert fill(windows, tmp_path).path == path
    assert not leftover.exists()


def test_a_second_process_waits_until_the_cache_is_there(windows, tmp_path):
    """Two threads stand for two processes: each opens the lock for itself."""
    counted, read_window = [], decoded.read_window

    def slowly(*args, **options):
        counted.append(args)
        time.sleep(0.02)
        return read_window(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoded, "read_window", slowly)
        threads = [threading.Thread(target=fill, args=(windows, tmp_path)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(counted) == len(windows)


HOLDS = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_process_waits_for_another_and_fills_the_cache_when_that_is_killed(windows, tmp_path):
    pytest.importorskip("fcntl", reason="locks files")
    path = fill(windows, tmp_path).path
    path.unlink()
    begun = []  # whether the cache was, each time before it was asked to stop

    def stop():
        begun.append(any(tmp_path.glob(".*.tmp")))
        other.kill()
        return False

    command = [sys.executable, "-c", HOLDS, path.with_suffix(".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        assert fill(windows, tmp_path, stop=stop).path == path
    assert not begun[0]
    assert begun[-1]


def test_a_process_that_waits_can_be_stopped(windows, tmp_path):
    fcntl = pytest.importorskip("fcntl", reason="locks files")
    path = fill(windows, tmp_path).path
    path.unlink()
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert fill(windows, tmp_path, stop=always) is None


def test_several_views_are_not_of_a_cache(windows, tmp_path):
    with pytest.raises(ValueError, match="n_views must be 1 with a cache, got 4"):
        ClipViews(windows.manifest, TRANSFORM, 4, cache=fill(windows, tmp_path))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("augment.window=random", r"augment\.window must be centre with data\.cache, got random"),
        ("augment.crop=random", r"augment\.crop must be centre"),
        ("augment.scale=[1, 1.2]", r"augment\.scale must be \[1\.0, 1\.0\] with data\.cache"),
    ],
)
def test_windows_that_are_drawn_are_not_cached(configure, override, message):
    with pytest.raises(InputError, match=message):
        configure("data.cache=folder", *FIXED, override)


def test_the_file_is_one_that_safetensors_reads(windows, tmp_path):
    from safetensors import safe_open

    with safe_open(fill(windows, tmp_path).path, framework="pt") as file:
        assert set(file.keys()) == {"offsets", "spectrogram", "rgb", "records"}
        assert file.get_slice("rgb").get_shape() == [len(windows), 3, 2, 32, 32]
        end = int(file.get_tensor("offsets")[1])
        record = bytes(file.get_tensor("records")[:end].tolist())
        assert json.loads(record).keys() & {"error", "starts"}
