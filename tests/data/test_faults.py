"""What real files and installations do to a reader; each test is named after its symptom."""

import errno
import itertools
import struct
import wave
from fractions import Fraction

import pytest
import torch

from mbt_fast.data import ClipTransform, load_clip, read_window
from mbt_fast.data.audio import log_mel
from mbt_fast.data.decode import Decoder
from mbt_fast.data.entry import Entry
from mbt_fast.data.media import Media
from mbt_fast.data.sound import SAMPLE_RATE, AudioCollector, AudioWindow
from mbt_fast.data.windows import Segment
from mbt_fast.errors import ClipError

av = pytest.importorskip("av")
np = pytest.importorskip("numpy")
from media_files import NASA, encode, sine  # noqa: E402

SOUND = ClipTransform(rgb=None, spectrogram=(50, 32), mean=0.0, std=1.0)
BOTH = ClipTransform((4, 16, 16), (50, 32))


# Channels.


@pytest.mark.parametrize("channels", range(1, 17))
def test_a_wav_file_of_many_channels_is_the_mean_of_all(tmp_path, channels):
    # Eight and more ended the process with a segmentation fault.
    samples = np.random.default_rng(channels).integers(-9999, 9999, (8240, channels), np.int16)
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.tobytes())
    mean = (torch.from_numpy(samples) / 32768).mean(1)
    clip = read_window(path, SOUND, position=0)
    assert torch.equal(clip.inputs["spectrogram"][0], log_mel(mean, n_mels=32)[:50])
    assert torch.equal(
        load_clip(path, SOUND, 2).inputs["spectrogram"][:1], clip.inputs["spectrogram"]
    )


def decoded_by_filters(path, samples):
    """The mean of eight channels at 16 kHz by FFmpeg's own filters, [samples]."""
    with av.open(str(path)) as container:
        graph = av.filter.Graph()
        nodes = [graph.add_abuffer(template=container.streams.audio[0])]
        mean = "+".join(f"0.125*c{channel}" for channel in range(8))
        for name, options in (
            ("aformat", "sample_fmts=fltp"),
            ("pan", f"mono|c0={mean}"),
            ("aresample", str(SAMPLE_RATE)),
            ("abuffersink", None),
        ):
            nodes.append(graph.add(name, options) if options else graph.add(name))
            nodes[-2].link_to(nodes[-1])
        graph.configure()
        pieces = []
        for frame in (*container.decode(audio=0), None):
            graph.push(frame)
            try:
                while True:
                    pieces.append(graph.pull().to_ndarray()[0])
            except (av.BlockingIOError, EOFError):
                pass
    return torch.from_numpy(np.concatenate(pieces)[:samples])


@pytest.mark.parametrize(
    ("name", "codec", "form", "rate"),
    [
        ("a.wav", "pcm_s16le", "s16", 16000),
        ("a.mp4", "aac", "flt", 16000),
        ("a.flac", "flac", "s16", 16000),
        ("a.ogg", "libopus", "flt", 48000),
    ],
)
def test_surround_sound_of_eight_channels(tmp_path, monkeypatch, name, codec, form, rate):
    path = tmp_path / name
    tones = np.concatenate([sine(200 * (c + 1), 1.0, rate, level=0.1 * (c + 1)) for c in range(8)])
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout="7.1")
        scaled = np.round(32767 * tones).astype(np.int16) if form == "s16" else tones
        for start in range(0, rate, 960):
            packed = np.ascontiguousarray(scaled[:, start : start + 960].T.reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(packed, form, "7.1")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    monkeypatch.setattr(AudioWindow, "spectrogram", lambda self, waveform: waveform)
    waveform = read_window(path, SOUND, position=0).inputs["spectrogram"][0]
    expected = decoded_by_filters(path, len(waveform))
    assert waveform.abs().max() > 0.1
    # Eight channels, then at most 128 taps of the resampler, are added in another order.
    bound = (8 + 128) * torch.finfo(torch.float32).eps * waveform.abs().max()
    assert (waveform - expected).abs().max() <= bound


def test_an_absurd_sample_rate_takes_no_memory():
    # Up to a second of silence is put in front of a run of sound: here 8 GB.
    window = SOUND.windows["spectrogram"]
    collector = AudioCollector(window, [Fraction(0)], Segment(Fraction(0), Fraction(1)))
    frame = av.AudioFrame("s16", "mono", 16)
    frame.sample_rate = 2_000_000_011
    with pytest.raises(ValueError, match=r"sample rate must be in \[1, 4000000\], got 2000000011"):
        collector.push(Fraction(1, 3), frame)


# Errors that are none of FFmpeg's.


def late_sound(path):
    """A file whose header knows of video only; sound joins it after 50 s."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("flv1", rate=5, width=16, height=16, pix_fmt="yuv420p")
        audio = out.add_stream("pcm_s16le", rate=11025, layout="mono")
        for index in range(300):
            picture = av.VideoFrame(16, 16, "yuv420p")
            picture.pts, picture.time_base = index, Fraction(1, 5)
            out.mux(video.encode(picture))
            if index >= 250:
                sound = av.AudioFrame("s16", "mono", 2205)
                sound.sample_rate, sound.pts = 11025, 2205 * index
                sound.time_base = Fraction(1, 11025)
                out.mux(audio.encode(sound))
        out.mux(video.encode(None))
    data = bytearray(path.read_bytes())
    data[4] = 1  # of the flags, the one for video
    path.write_bytes(data)
    return path


def test_a_stream_that_joins_later_is_no_index_error(tmp_path):
    path = late_sound(tmp_path / "a.flv")
    for _ in range(5):  # PyAV reads behind the end of a list: what it finds there is chance
        clip = load_clip(path, BOTH, 2)
        assert list(clip.inputs) == ["rgb"]
        assert clip.duration == pytest.approx(60, abs=0.1)


@pytest.mark.parametrize(
    "error",
    [
        IndexError("list index"),
        ValueError("bad\ntag"),
        av.error.OSError(5, "io"),
        av.MemoryError(12, ""),
    ],
)
@pytest.mark.parametrize("place", ["open", "decode"])
def test_any_exception_is_one_clip_error(monkeypatch, error, place):
    def fail(*args, **kwargs):
        raise error

    if place == "open":
        monkeypatch.setattr("av.open", fail)
    else:
        monkeypatch.setattr("mbt_fast.data.video.planes", fail)
    with pytest.raises(ClipError, match=r"nasa\.mp4: ") as raised:
        load_clip(NASA, BOTH)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is error


MACHINE = [
    MemoryError(),
    OSError(errno.EIO, "disk"),
    OSError(errno.EMFILE, "too many"),
    av.error.OSError(errno.EMFILE, "too many"),
]


@pytest.mark.parametrize("error", MACHINE, ids=repr)
@pytest.mark.parametrize("errors", ["strict", "tolerate"])
@pytest.mark.parametrize(
    "place", ["os.stat", "av.open", "mbt_fast.data.video.planes", "mbt_fast.data.decode.packets"]
)
def test_a_machine_that_runs_out_is_no_broken_clip(monkeypatch, error, errors, place):
    # A batch of good clips was counted as broken, up to the limit that ends a run.
    def fail(*args, **kwargs):
        raise error

    lazy = place.endswith("packets")
    with monkeypatch.context() as patch:
        patch.setattr(place, (lambda *args: map(fail, args)) if lazy else fail)
        with pytest.raises(type(error)) as raised:
            read_window(NASA, BOTH, errors=errors)
    assert raised.value is error


def test_a_shard_that_cannot_be_opened_for_want_of_descriptors_is_no_broken_clip(tmp_path):
    resource = pytest.importorskip("resource")
    entry = Entry(str(NASA), "a", offset=0, size=100)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            _ = entry.media
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Orientation.

# What ffmpeg's autorotate inserts for each of the eight display matrices (a, b, c, d).
AUTOROTATE = {
    (1, 0, 0, 1): [],
    (-1, 0, 0, 1): ["hflip"],
    (1, 0, 0, -1): ["vflip"],
    (-1, 0, 0, -1): ["hflip", "vflip"],
    (0, 1, 1, 0): ["transpose=cclock_flip"],
    (0, 1, -1, 0): ["transpose=clock"],
    (0, -1, 1, 0): ["transpose=cclock"],
    (0, -1, -1, 0): ["transpose=clock_flip"],
}


def filtered(frame, filters):
    graph = av.filter.Graph()
    nodes = [
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 10)
        )
    ]
    for name, _, options in (text.partition("=") for text in (*filters, "buffersink")):
        nodes.append(graph.add(name, options) if options else graph.add(name))
        nodes[-2].link_to(nodes[-1])
    graph.configure()
    graph.push(frame)
    return graph.pull()


@pytest.mark.parametrize("matrix", AUTOROTATE)
def test_a_mirrored_or_turned_video_is_shown_as_ffmpeg_shows_it(tmp_path, matrix):
    # Front cameras write a matrix with a negative determinant: such videos stood on their heads.
    path = tmp_path / "a.mov"
    picture = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("png", rate=10, width=40, height=24, pix_fmt="rgb24")
        frame = av.VideoFrame.from_ndarray(picture, "rgb24")
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # behind version, times, id, layer and volume
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)

    upright = np.ascontiguousarray(filtered(frame, AUTOROTATE[matrix]).to_ndarray())
    transform = ClipTransform((1, *upright.shape[:2]), None, min_side=24)
    pixels = read_window(path, transform, pixels="uint8").inputs["rgb"][0, :, 0]
    assert torch.equal(pixels.permute(1, 2, 0), torch.from_numpy(upright))


# Colours.

LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}  # Kr and Kb of the standards
COLORSPACE = {"bt601": 5, "bt709": 1}


def exact_rgb(colour, standard, full):
    """ITU-R BT.601 and BT.709: luma and two colour differences to red, green and blue."""
    red, blue = LUMA[standard]
    floor, luma, chroma = (0, 255, 255) if full else (16, 219, 224)
    y, pb, pr = (colour - np.array([floor, 128, 128])) / (luma, chroma, chroma)
    r, b = y + 2 * (1 - red) * pr, y + 2 * (1 - blue) * pb
    g = (y - red * r - blue * b) / (1 - red - blue)
    return np.clip(255 * np.array([r, g, b]), 0, 255)


@pytest.mark.parametrize("side", [16, 24], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("form", ["yuv420p", "yuv444p"])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("standard", LUMA)
def test_colours_are_those_of_the_standard(tmp_path, standard, full, form, side):
    colours = list(itertools.product((16, 81, 128, 235), (90, 128, 200), (80, 128, 180)))
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=10, width=16, height=16, pix_fmt=form)
        stream.codec_context.colorspace = COLORSPACE[standard]
        stream.codec_context.color_range = 2 if full else 1
        for index, colour in enumerate(colours):
            frame = av.VideoFrame(16, 16, form)
            frame.colorspace, frame.color_range = COLORSPACE[standard], 2 if full else 1
            for plane, value in zip(frame.planes, colour, strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            frame.pts, frame.time_base = index, Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    transform = ClipTransform((len(colours), 16, 16), None, stride=2.5, min_side=side)
    pixels = load_clip(path, transform, pixels="uint8").inputs["rgb"][0].permute(1, 2, 3, 0)
    for shown, colour in zip(pixels, colours, strict=True):
        rgb = exact_rgb(colour, standard, full)
        assert (shown == shown[0, 0]).all()
        # Rounding to whole levels, and 15 bits of swscale's coefficients.
        assert np.abs(shown[0, 0].numpy() - rgb).max() <= 0.5 + 255 * 2**-14


# Threads.


def test_decoders_have_one_thread(monkeypatch):
    # Pools of threads hang where a decoder is left early, or in workers.
    threads = set()

    def frames(self, packet, end, _frames=Decoder._frames_of):
        threads.add(packet.stream.codec_context.thread_count)
        return _frames(self, packet, end)

    monkeypatch.setattr(Decoder, "_frames_of", frames)
    read_window(NASA, BOTH)
    assert threads == {1}


def test_a_file_is_closed_however_reading_ends(monkeypatch):
    opened = []

    def remember(self, _open=Media.open):
        opened.append(_open(self))
        return opened[-1]

    monkeypatch.setattr(Media, "open", remember)
    read_window(NASA, BOTH, position=0)
    monkeypatch.setattr("mbt_fast.data.video.planes", None)
    with pytest.raises(ClipError):
        read_window(NASA, BOTH)
    assert len(opened) > 2
    for container in opened:
        with pytest.raises(AssertionError, match="not open"):
            list(container.demux())


# Damaged files.


def with_damage(path, packets):
    """Overwrite the middle of given packets of the video."""
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for index in packets:
        position, size = places[index]
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    return path


def test_one_bad_packet_does_not_lose_the_clip(tmp_path):
    path = with_damage(encode(tmp_path / "a.mp4", video="libx264", audio="aac"), [60])
    with pytest.raises(ClipError, match=r"damaged, cannot be decoded past 2\.\d+ s"):
        load_clip(path, BOTH)
    clip = load_clip(path, BOTH, errors="tolerate")
    assert clip.skipped == 1
    assert list(clip.inputs) == ["rgb", "spectrogram"]
    assert load_clip(NASA, BOTH, errors="tolerate").skipped == 0


def test_only_damage_inside_the_window_counts(tmp_path):
    path = with_damage(encode(tmp_path / "a.mp4", video="libx264", gop=25), [60, 61])
    frames = ClipTransform((4, 16, 16), None, stride=5)
    assert read_window(path, frames, position=1).skipped == 0
    assert read_window(path, frames, 2, 3.5, errors="tolerate").skipped == 2


def test_a_cut_off_file_is_what_is_left_of_it(tmp_path):
    data, path = NASA.read_bytes(), tmp_path / "cut.mp4"
    path.write_bytes(data[: int(len(data) * 0.6)])
    clip = load_clip(path, BOTH, errors="tolerate")
    assert 2 < clip.duration < 4
    (fault,) = clip.faults
    assert fault.startswith("cut off, the file ends at 2.")
    whole = read_window(NASA, BOTH, position=0)
    first = load_clip(path, BOTH, errors="tolerate").inputs["rgb"][0]
    assert torch.equal(first, whole.inputs["rgb"][0])


def test_a_stream_that_cannot_be_decoded_is_absent_if_tolerated(tmp_path):
    path = encode(tmp_path / "a.mp4", video="libx264", audio="aac", seconds=4)
    with_damage(path, range(100))
    clip = load_clip(path, BOTH, errors="tolerate")
    assert list(clip.inputs) == list(clip.formats) == list(clip.starts) == ["spectrogram"]
    assert clip.skipped == 100
    only_video = ClipTransform((4, 16, 16), None)
    with pytest.raises(ClipError, match="nothing that can be decoded"):
        load_clip(path, only_video, errors="tolerate")
