"""Records of a run: each step once, whatever killed it."""

import json
import math
from contextlib import closing
from pathlib import Path

import pytest

from mbt_fast.train.log import Log, read


def write(path, *records):
    with closing(Log(path, step=100)) as log:
        for record in records:
            log.append(record)


def test_records_are_one_json_object_in_a_line(tmp_path):
    write(tmp_path / "log.jsonl", {"step": 1, "loss": 0.5}, {"step": 2, "loss": math.nan})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None},
    ]


def test_a_resumed_run_has_no_step_twice(tmp_path):
    path = tmp_path / "log.jsonl"
    write(path, *({"step": step} for step in range(1, 6)))
    with closing(Log(path, step=3)) as log:
        assert [record["step"] for record in log.records()] == [1, 2, 3]
        log.append({"step": 4})
    assert [record["step"] for record in read(path)] == [1, 2, 3, 4]


def test_a_line_that_was_written_in_part_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    write(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    with closing(Log(path, step=5)) as log:
        log.append({"step": 2})
    assert [record["step"] for record in read(path)] == [1, 2]


@pytest.mark.parametrize("damage", [b"\0" * 15 + b"\n", b'{"step":\0\0\0\n', b"\xff\n"])
def test_a_line_that_a_power_cut_damaged_is_dropped(tmp_path, damage):
    path = tmp_path / "log.jsonl"
    write(path, {"step": 1}, {"step": 2})
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage + second)
    with closing(Log(path, step=1)) as log:
        log.append({"step": 2})
    assert [record["step"] for record in read(path)] == [1, 2]
    assert path.read_bytes() == first + second


def test_records_are_there_at_once_for_who_follows_the_file(tmp_path):
    with closing(Log(tmp_path / "log.jsonl", step=0)) as log:
        log.append({"step": 1})
        assert read(tmp_path / "log.jsonl") == [{"step": 1}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_names_the_file(tmp_path):
    log = Log(tmp_path / "log.jsonl", step=0)
    with Path("/dev/full").open("a") as log._file:
        with pytest.raises(OSError, match=r"No space left on device.*log\.jsonl"):
            log.append({"step": 1})
        log.close()  # says it no second time
