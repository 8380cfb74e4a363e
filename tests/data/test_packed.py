"""Parts of a file as files of their own."""

import os

import pytest

from mbt_fast.data.packed import PackedFile
from mbt_fast.errors import ClipError


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole"
    path.write_bytes(bytes(range(100)))
    return str(path)


def test_reads_its_own_bytes_only(whole):
    with PackedFile(whole, 10, 20, "part") as part:
        assert part.read() == bytes(range(10, 30))
        assert part.read() == part.read(5) == b""
        assert part.seek(-5, os.SEEK_END) == part.tell() == 15
        assert part.read(100) == bytes(range(25, 30))
        assert part.seek(3) == 3
        assert part.seek(2, os.SEEK_CUR) == 5
        assert part.read(2) == bytes((15, 16))
        part.seek(50)
        assert part.read() == b""
        with pytest.raises(ValueError, match="at least 0, got -1"):
            part.seek(-1)
        assert part.seekable()
        assert part.readable()
        assert not part.writable()


def test_two_parts_do_not_move_one_another(whole):
    first, second = PackedFile(whole, 0, 10, "a"), PackedFile(whole, 50, 10, "b")
    assert first.read(3) + second.read(3) + first.read(1) == bytes((0, 1, 2, 50, 51, 52, 3))


def test_an_unused_part_leaves_no_descriptor_open(whole):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    if before is None:
        pytest.skip("counting open descriptors needs /proc")
    for _ in range(10):
        PackedFile(whole, 0, 10, "part").read()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_shard_that_is_missing_or_cut_off(whole, tmp_path):
    with pytest.raises(ClipError, match=r"a!b: cannot be opened .No such file"):
        PackedFile(str(tmp_path / "none"), 0, 1, "a!b")
    with pytest.raises(ClipError, match=r"a!b: lies beyond the end of .*whole, which was cut off"):
        PackedFile(whole, 90, 11, "a!b")
    PackedFile(whole, 90, 10, "a!b")
