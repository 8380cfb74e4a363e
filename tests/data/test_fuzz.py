"""Files damaged at random end in frames or in one ClipError: no crash, no hang, nothing else.

MBT_FAST_FUZZ=500 reads that many; the damage of a file depends on its number alone.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("av")
pytest.importorskip("numpy")
from media_files import encode

DAMAGE = Path(__file__).with_name("damage.py")
FILES = int(os.environ.get("MBT_FAST_FUZZ", "60"))
SECONDS = 60  # for one file, on a machine that others use
KINDS = [
    ("mp4", "libx264", "aac"),
    ("mkv", "mpeg4", "flac"),
    ("avi", "mpeg4", "libmp3lame"),
    ("webm", "libvpx", "libopus"),
    ("ts", "libx264", "aac"),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Ten whole files: five containers, with and without sound."""
    folder = tmp_path_factory.mktemp("sources")
    return [
        encode(
            folder / f"{sound}.{name}",
            video=video,
            audio=audio if sound == "sound" else None,
            seconds=3,
            fps=10,
            gop=10,
            rate=16000,
        )
        for name, video, audio in KINDS
        for sound in ("mute", "sound")
    ]


class Reader:
    """A process that reads damaged files from a number on, as long as it lives."""

    def __init__(self, first, folder, sources):
        command = [sys.executable, str(DAMAGE), str(first), str(FILES), str(folder)]
        self._process = subprocess.Popen(
            [*command, *map(str, sources)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def next(self):
        """The next outcome, or what became of the process instead."""
        alarm = threading.Timer(SECONDS, self._process.kill)
        alarm.start()
        line = self._process.stdout.readline()
        alarm.cancel()
        if line:
            return json.loads(line)
        late = alarm.finished.is_set() and self._process.wait() == -9
        return f"no end after {SECONDS} s" if late else f"exit code {self._process.wait()}"

    def close(self):
        self._process.kill()
        self._process.wait()


def test_a_damaged_file_ends_in_frames_or_one_clip_error(tmp_path, sources):
    wrong, ends, number = [], [], 0
    reader = Reader(number, tmp_path, sources)
    while number < FILES:
        outcome = reader.next()
        if isinstance(outcome, str):  # the process is gone; go on behind the file that ended it
            wrong.append((number, outcome))
            reader.close()
            reader = Reader(number + 1, tmp_path, sources)
        else:
            ends += outcome["ends"]
            if set(outcome["ends"]) - {"frames", "ClipError"}:
                wrong.append(outcome)
        number += 1
    reader.close()
    assert not wrong
    assert {"frames", "ClipError"} == set(ends)  # or the damage would be none, or total
