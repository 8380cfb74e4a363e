"""A manifest in many workers is one manifest: "memory grows with the number of workers"."""

import pickle
from pathlib import Path

import pytest

from mbt_fast.data import Manifest
from mbt_fast.data.workers import call_for_each

ROWS = 300_000
SMAPS = Path("/proc/self/smaps_rollup")


class Tasks:
    """Which rows to read, of a manifest that goes to the worker as well."""

    def __init__(self, manifest, tasks):
        self.manifest, self.tasks = manifest, tasks

    def __len__(self):
        return len(self.tasks)

    def __getitem__(self, index):
        return self.manifest, self.tasks[index]


def private_bytes_after_reading(task):
    """What the process alone holds, after it has read some rows."""
    manifest, rows = task
    for row in rows:
        manifest[row]
    lines = SMAPS.read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


@pytest.mark.slow
@pytest.mark.skipif(not SMAPS.exists(), reason="private memory is measured by Linux's smaps_rollup")
def test_a_worker_reads_all_rows_without_a_copy_of_them(tmp_path):
    private = []
    for count in (100, ROWS):
        path = tmp_path / f"{count}.csv"
        with path.open("w") as file:
            file.write("path,id,labels\n")
            file.writelines(f"clips/{k:024d}.mp4,{k:032d},name {k % 527}|x\n" for k in range(count))
        manifest = Manifest.read(path)
        tasks = Tasks(manifest, [range(0, count, max(count // 30_000, 1))])
        private += call_for_each(private_bytes_after_reading, tasks, 1)
    size = len(pickle.dumps(manifest))
    assert size > 100 * ROWS  # so that a copy would be seen
    assert private[1] - private[0] < size / 4
