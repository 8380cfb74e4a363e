"""Windows in long runs and in workers: memory does not grow, and nothing hangs."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mbt_fast.data import ClipTransform, collate, read_window

pytest.importorskip("av")
pytest.importorskip("numpy")
from media_files import encode

FORM = ClipTransform(
    (4, 32, 32), (100, 32), patch_size={"rgb": (1, 16, 16), "spectrogram": (10, 16)}
)
MIB = 2**20


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    return encode(folder / "a.mp4", video="libx264", audio="aac", seconds=6, gop=25, rate=16000)


def resident():
    """Memory of this process that is in use, in bytes."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth(clip, windows):
    """How much memory reading windows takes for good, after a tenth of them as a warm-up."""
    before = 0
    for index in range(windows):
        if index == windows // 10:
            before = resident()
        read_window(clip, FORM, position=index / windows, pixels="uint8")
    return resident() - before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    "windows", [200, pytest.param(2000, marks=pytest.mark.slow)], ids=["200", "2000"]
)
def test_memory_does_not_grow_with_the_windows_read(clip, windows):
    # The allocator keeps some MiB in any case. 2,000 windows show leaks from 2 KiB each on, 200
    # those from 20 KiB: a container or a scaler has more.
    assert growth(clip, windows) < 4 * MIB


class Windows(Dataset):
    """Random windows of one file, which stop in the middle of it."""

    def __init__(self, path, size):
        self._path, self._size = path, size

    def __len__(self):
        return self._size

    def __getitem__(self, index):
        return read_window(self._path, FORM, position=index / self._size, pixels="uint8")


def batches(path, context, leave_after=None):
    """Read with two workers, and leave early or not; the number of batches."""
    loader = DataLoader(
        Windows(path, 48),
        batch_size=4,
        num_workers=2,
        collate_fn=collate,
        multiprocessing_context=context,
    )
    for count, (inputs, _) in enumerate(loader, start=1):
        assert inputs["rgb"].shape == (4, 3, 4, 32, 32)
        if count == leave_after:
            break
    return count


def main(path, context):
    """Windows in this process, in workers, and in workers that are left early."""
    read_window(path, FORM)  # threads that this left behind would hang in a fork
    torch.randn(64, 64) @ torch.randn(64, 64)
    assert batches(path, context, leave_after=2) == 2
    assert batches(path, context) == 12
    read_window(path, FORM)


@pytest.mark.parametrize(
    "context",
    # New processes import torch, which takes long.
    ["fork", *(pytest.param(name, marks=pytest.mark.slow) for name in ("forkserver", "spawn"))],
)
def test_windows_in_workers_never_hang(clip, context):
    if context not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"no {context} on this system")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(clip), context],
        timeout=120,  # a hang never ends; the work takes some seconds
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    main(*sys.argv[1:])
