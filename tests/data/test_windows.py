"""Windows of files: which part is read, that a seek changes nothing, and what it costs."""

import io
import os

import pytest
import torch

from mbt_fast.data import ClipTransform, load_clip, read_window
from mbt_fast.data.decode import Decoder
from mbt_fast.errors import ClipError

av = pytest.importorskip("av")
np = pytest.importorskip("numpy")
from media_files import NASA, counted, encode, grey, onset, sine, write  # noqa: E402

FRAMES = ClipTransform(rgb=(4, 16, 16), spectrogram=None, stride=7.5)  # 0, 0.3, 0.6, 0.9 s
BOTH = ClipTransform((4, 32, 32), (120, 64), patch_size={"rgb": (1, 16, 16), "spectrogram": (8, 8)})


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """Six seconds, ten frames a second; the level of a frame is four times its number."""
    path = tmp_path_factory.mktemp("windows") / "a.mkv"
    return write(path, levels=[4 * i for i in range(60)], sound=sine(1000, 6.0, start=3.0))


def numbers(clip):
    return [level // 4 for level in grey(clip)[0]]


def same(first, second):
    assert list(first.inputs) == list(second.inputs)
    assert all(torch.equal(first.inputs[m], second.inputs[m]) for m in first.inputs)


# Where a window lies.


@pytest.mark.parametrize(
    ("options", "start", "frames"),
    [
        ({"position": 0}, 0, [0, 3, 6, 9]),
        ({}, 2.4, [24, 27, 30, 33]),
        ({"position": 1}, 4.8, [48, 51, 54, 57]),
        ({"start": 2, "end": 4, "position": 0}, 2, [20, 23, 26, 29]),
        ({"start": 2, "end": 4, "position": 0.5}, 2.4, [24, 27, 30, 33]),
        ({"start": 2, "end": 4, "position": 1}, 2.8, [28, 31, 34, 37]),
        ({"start": 2, "position": 1}, 4.8, [48, 51, 54, 57]),
        ({"end": 2, "position": 1}, 0.8, [8, 11, 14, 17]),
        ({"start": 5.5, "end": 100}, 5.5, [55, 58, 59, 59]),
        ({"start": 2, "end": 2.5}, 2, [20, 23, 24, 24]),  # never a frame behind the end
    ],
)
def test_position_and_segment(counting, options, start, frames):
    clip = read_window(counting, FRAMES, **options)
    assert numbers(clip) == frames
    assert clip.starts["rgb"] == (pytest.approx(start),)
    assert clip.n_views == 1


def test_views_of_a_segment(counting):
    clip = load_clip(counting, FRAMES, 3, start=1, end=4)
    assert clip.duration == 3
    assert clip.starts["rgb"] == pytest.approx((1, 1.9, 2.8))
    views = [[level // 4 for level in view] for view in grey(clip)]
    assert views == [[10, 13, 16, 19], [19, 22, 25, 28], [28, 31, 34, 37]]


def test_a_single_view_is_the_centre_window():
    same(load_clip(NASA, BOTH, 1), read_window(NASA, BOTH))


def test_sound_behind_the_end_of_a_segment_is_not_heard(counting):
    # The tone begins at 3 s, the segment ends there.
    quiet = read_window(counting, BOTH, 2.5, 3.0).inputs["spectrogram"]
    loud = read_window(counting, BOTH, 2.5, 3.1).inputs["spectrogram"]
    assert quiet.amax() == quiet.amin() < loud.amax()


def test_sound_keeps_its_time_behind_a_seek(counting):
    clip = read_window(counting, BOTH, 2.5, 6.0, position=0)
    assert 48 <= onset(clip.inputs["spectrogram"][0]) <= 50


# A seek changes nothing.


@pytest.mark.parametrize(
    ("name", "video", "audio"),
    [
        ("a.mp4", "libx264", "flac"),
        ("a.mkv", "libx264", "flac"),  # its clock counts milliseconds, as does flv's
        ("a.webm", "libvpx", None),
        ("a.flv", "flv1", "libmp3lame"),
        ("a.ts", "libx264", None),
        ("a.avi", "mpeg4", "libmp3lame"),
        ("a.mpg", "mpeg2video", "mp2"),
        ("a.264", "libx264", None),
        ("a.flac", None, "flac"),
        ("a.wav", None, "pcm_s16le"),
        ("a.mp3", None, "libmp3lame"),
        ("a.ogg", None, "libopus"),
    ],
)
def test_a_seek_changes_nothing(tmp_path, monkeypatch, name, video, audio):
    rate = 48000 if audio == "libopus" else 44100
    path = encode(tmp_path / name, video=video, audio=audio, rate=rate)
    windows = [read_window(path, BOTH, position=p) for p in (0.0, 0.3, 0.61, 1.0)]
    monkeypatch.setattr(Decoder, "_targets", lambda *_: iter([None]))
    for position, window in zip((0.0, 0.3, 0.61, 1.0), windows, strict=True):
        same(window, read_window(path, BOTH, position=position))


def test_a_file_that_seeks_is_not_read_from_its_beginning(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", video="libx264", audio="flac")
    with counted(monkeypatch) as counts:
        read_window(path, BOTH, position=0.9)
    assert counts["sought"] == 2
    assert counts["from the beginning"] == 0


# What it costs.


def long_copy(source, path, times):
    """The packets of a file ``times`` over, one after the other."""
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        streams = [out.add_stream_from_template(stream) for stream in given.streams]
        lengths = [stream.duration for stream in given.streams]
        packets = [packet for packet in given.demux() if packet.size]
        stamps = [(packet.stream.index, packet.pts, packet.dts) for packet in packets]
        for lap in range(times):
            for packet, (index, pts, dts) in zip(packets, stamps, strict=True):
                packet.stream = streams[index]
                packet.pts, packet.dts = (stamp + lap * lengths[index] for stamp in (pts, dts))
                packet.time_base = given.streams[index].time_base
                out.mux(packet)
    return path


class CountingFile(io.FileIO):
    """A file that counts the bytes that are read of it."""

    taken = 0

    def read(self, size=-1):
        data = super().read(size)
        self.taken += len(data)
        return data


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_an_hour_costs_no_more_than_a_minute(tmp_path, monkeypatch, suffix):
    minute = encode(
        tmp_path / "minute.mp4", video="mpeg4", audio="flac", seconds=60, fps=5, gop=10, rate=16000
    )
    read = {}
    for times in (1, 60):
        path = long_copy(minute, tmp_path / f"{times}.{suffix}", times)
        with counted(monkeypatch) as counts, CountingFile(path) as file:
            clip = read_window(file, BOTH, position=0.7)
        assert clip.duration == pytest.approx(60 * times, abs=1)
        read[times] = sum(n for what, n in counts.items() if "packets" in what), counts["frames"]
    assert all(hour <= 1.5 * one for one, hour in zip(read[1], read[60], strict=True)), read
    assert file.taken < path.stat().st_size / 20  # and this is mostly the index


def test_what_lies_between_views_is_not_decoded(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", video="mpeg4", seconds=60, fps=5, gop=10)
    with counted(monkeypatch) as counts:
        clip = load_clip(path, FRAMES, 3)
    assert clip.starts["rgb"] == pytest.approx((0, 29.4, 58.8))
    # A view spans 5 frames, and up to a group of 10 comes before it.
    assert counts["frames"] <= 3 * (5 + 10 + 1)


def test_decoding_stops_behind_the_window(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", video="mpeg4", audio="flac", seconds=60, fps=5, gop=10)
    with counted(monkeypatch) as counts:
        read_window(path, BOTH, position=0)
    assert counts["video packets"] <= 10
    assert counts["audio packets"] <= 30


# Files as bytes and objects.


class Pipe(io.RawIOBase):
    """A file object that can only be read."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._data.readinto(buffer)


def test_bytes_and_file_objects():
    data = NASA.read_bytes()
    expected = {read: read(NASA, BOTH) for read in (read_window, load_clip)}
    for read, clip in expected.items():
        for given in (data, bytearray(data), io.BytesIO(data), Pipe(data)):
            same(read(given, BOTH), clip)
        with open(NASA, "rb") as file:
            file.seek(100)  # a file object is read from its beginning
            same(read(file, BOTH), clip)
            assert not file.closed
    assert read_window(data, BOTH).path == f"<{len(data)} bytes>"
    assert read_window(NASA, BOTH).path == os.fspath(NASA)


@pytest.mark.parametrize("given", [b"", io.BytesIO(), b"no clip" * 100, io.BytesIO(b"x" * 999)])
def test_bytes_that_are_no_clip(given):
    with pytest.raises(ClipError, match=r"the file is empty|not a readable media file"):
        read_window(given, BOTH)


# What cannot be read.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": -0.1}, r"position must be in \[0, 1\], got -0.1"),
        ({"position": float("nan")}, r"position must be in \[0, 1\], got nan"),
        ({"start": -1}, "start must be at least 0 and finite, got -1"),
        ({"end": float("inf")}, "end must be at least 0 and finite, got inf"),
        ({"start": 2, "end": 2}, "end must be greater than start, got 2 and 2"),
        ({"pixels": "uint16"}, "pixels must be one of float32, uint8, got 'uint16'"),
        ({"errors": "ignore"}, "errors must be one of strict, tolerate, got 'ignore'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        read_window(NASA, BOTH, **options)


def test_a_segment_behind_the_end(counting):
    with pytest.raises(ClipError, match=r"must lie before the end of the file, 6.00 s, got 6"):
        read_window(counting, FRAMES, 6)


def test_only_the_window_of_a_cut_file_must_be_there(tmp_path):
    data, path = NASA.read_bytes(), tmp_path / "cut.mp4"  # its header comes first
    path.write_bytes(data[: int(len(data) * 0.6)])
    with pytest.raises(ClipError, match="cut off"):
        load_clip(path, FRAMES)
    same(read_window(path, FRAMES, position=0), read_window(NASA, FRAMES, position=0))
    with pytest.raises(ClipError, match=r"cut off, the video ends at .* s of 5\.00 s"):
        read_window(path, FRAMES, position=0.9)
