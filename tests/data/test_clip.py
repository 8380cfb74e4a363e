"""Media files to model inputs: which frames, which sound, which errors."""

import math
from fractions import Fraction

import pytest
import torch

from mbt_fast import MBTConfig
from mbt_fast.data import ClipTransform, load_clip
from mbt_fast.data.audio import FLOOR
from mbt_fast.data.decode import Decoder
from mbt_fast.data.media import Media
from mbt_fast.data.probe import probe
from mbt_fast.data.sound import SAMPLE_RATE
from mbt_fast.data.transform import MBT_STATISTICS
from mbt_fast.data.windows import view_positions, window_starts
from mbt_fast.errors import ClipError

av = pytest.importorskip("av")
np = pytest.importorskip("numpy")
from media_files import NASA, bands, grey, onset, shifted, sine, write  # noqa: E402

SILENCE = math.log(FLOOR)


# The real clip.


def test_real_clip_has_the_models_shapes():
    config = MBTConfig(input_size={"rgb": (4, 112, 112), "spectrogram": (208, 64)})
    clip = load_clip(NASA, ClipTransform.from_config(config), n_views=3)
    assert clip.inputs["rgb"].shape == (3, 3, 4, 112, 112)
    assert clip.inputs["spectrogram"].shape == (3, 208, 64)
    for tensor in clip.inputs.values():
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
        assert tensor.std() > 0
    assert -1 <= clip.inputs["rgb"].min() < clip.inputs["rgb"].max() <= 1
    assert clip.n_views == 3
    assert clip.duration == 5
    assert clip.starts["rgb"] == clip.starts["spectrogram"] == (0, 1.46, 2.92)
    assert clip.formats == {
        "rgb": "h264, 256x144, 25 fps",
        "spectrogram": "aac, 16000 Hz, 2 channels",
    }


def test_frames_of_a_codec_that_reorders_them():
    # The clip has B-frames: its packets are not in the order of its pictures.
    with av.open(str(NASA)) as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.size]
        assert stamps != sorted(stamps)
    with av.open(str(NASA)) as container:
        frames = sorted(container.decode(video=0), key=lambda frame: frame.pts)
        exact = {"format": "rgb24", "interpolation": 0x2 | 0x2000 | 0x40000}
        expected = [frames[i].to_ndarray(**exact) for i in range(0, 125, 25)]
    # Frames that need no scaling are untouched.
    transform = ClipTransform(rgb=(5, 144, 256), spectrogram=None, stride=25, min_side=144)
    actual = load_clip(NASA, transform).inputs["rgb"]
    exact = torch.from_numpy(np.stack(expected)).permute(3, 0, 1, 2) / 127.5 - 1
    assert torch.equal(actual[0], exact)


def test_sound_of_the_real_clip():
    # Its rate is 16 kHz already, so the samples are the decoder's own.
    transform = ClipTransform(rgb=None, spectrogram=(500, 16))
    clip = load_clip(NASA, transform)
    with av.open(str(NASA)) as container:
        decoded = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    waveform = torch.zeros(1, 499 * 160 + 400)
    waveform[0, : decoded.shape[1]] = torch.from_numpy(decoded).mean(0)
    window = transform.windows["spectrogram"]
    assert torch.equal(clip.inputs["spectrogram"], window.spectrogram(waveform))


# Frames.


def test_shown_is_the_last_frame_that_starts_no_later(tmp_path):
    path = write(tmp_path / "a.mkv", levels=[8 * i for i in range(30)])
    # 4 frames, 0.28 s apart: 0, 0.28, 0.56, 0.84; the window of 1.12 s moves by 0.94 s a view.
    transform = ClipTransform(rgb=(4, 16, 16), spectrogram=None, stride=7)
    clip = load_clip(path, transform, n_views=3)
    assert clip.starts["rgb"] == (0, 0.94, 1.88)
    numbers = [[0, 2, 5, 8], [9, 12, 15, 17], [18, 21, 24, 27]]
    assert grey(clip) == [[8 * n for n in view] for view in numbers]


def test_a_frame_is_shown_from_its_very_start(tmp_path):
    # 1/10 s is no float; times are fractions, so the frame that starts at 0.3 s is not missed.
    path = write(tmp_path / "a.mkv", levels=[8 * i for i in range(30)])
    transform = ClipTransform(rgb=(30, 16, 16), spectrogram=None, stride=2.5)
    assert grey(load_clip(path, transform)) == [[8 * i for i in range(30)]]


def test_the_last_frame_is_repeated_where_the_clip_ends(tmp_path):
    path = write(tmp_path / "a.mkv", levels=[10, 20, 30])
    transform = ClipTransform(rgb=(5, 16, 16), spectrogram=None, stride=2.5)
    clip = load_clip(path, transform)
    assert grey(clip) == [[10, 20, 30, 30, 30]]


@pytest.mark.parametrize("size", [(40, 80), (80, 40), (16, 64), (12, 8)])
def test_the_cut_is_the_centre(tmp_path, size):
    # Outside the central square: black. Small frames are enlarged.
    picture = np.zeros((*size, 3))
    side = min(size)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    picture[top : top + side, left : left + side] = 200
    path = write(tmp_path / "a.mkv", levels=[picture], size=size)
    transform = ClipTransform(rgb=(1, 16, 16), spectrogram=None, min_side=20)
    assert grey(load_clip(path, transform)) == [[200]]


def test_a_wide_cut_enlarges_more_than_min_side(tmp_path):
    path = write(tmp_path / "a.mkv", levels=[7])
    assert grey(load_clip(path, ClipTransform((1, 16, 48), None, min_side=20))) == [[7]]


def test_channels_are_red_green_blue(tmp_path):
    path = write(tmp_path / "a.mkv", levels=[(255, 51, 0)])
    pixels = load_clip(path, ClipTransform((1, 16, 16), None)).inputs["rgb"]
    expected = torch.tensor([255, 51, 0]) / 127.5 - 1
    assert torch.equal(pixels, expected.view(1, 3, 1, 1, 1).expand_as(pixels))


@pytest.mark.skipif(
    not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV cannot write a rotation"
)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_video_is_upright(tmp_path, turns):
    # A phone stores what its sensor saw and, beside it, by how much to turn that.
    upright = np.zeros((32, 32, 3))
    upright[:8, :, 0] = 255
    upright[:, :8, 1] = 255
    stored = np.rot90(upright, -turns)
    path = write(tmp_path / "a.mkv", levels=[stored], rotation=90 * turns)
    transform = ClipTransform((1, 32, 32), None, min_side=32)
    pixels = load_clip(path, transform).inputs["rgb"][0, :, 0]
    expected = torch.from_numpy(upright).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(pixels, expected)


# Sound.


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mkv"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone_is_heard_in_its_band_at_its_time(tmp_path, name, rate, channels):
    sound = sine(1000, 2.0, rate, start=1.0, channels=channels)
    path = write(tmp_path / name, sound=sound, rate=rate)
    transform = ClipTransform(rgb=(2, 16, 16), spectrogram=(200, 64))
    clip = load_clip(path, transform)
    assert list(clip.inputs) == ["spectrogram"]
    energy = bands(clip, transform)[0]
    top = 1127 * math.log1p(8000 / 700)
    low = 1127 * math.log1p(20 / 700)
    place = (1127 * math.log1p(1000 / 700) - low) / (top - low) * 65 - 1
    assert abs(int(energy[120:180].sum(0).argmax()) - place) <= 1
    # The tone fills every frame from the 100th on, and touches the two before it.
    assert 98 <= onset(energy) <= 100


def test_loudness_does_not_depend_on_the_number_of_channels(tmp_path):
    transform = ClipTransform(rgb=None, spectrogram=(100, 64))
    mono, stereo = (
        load_clip(write(tmp_path / f"{n}.wav", sound=sine(1000, 1.5, channels=n)), transform)
        for n in (1, 2)
    )
    assert torch.equal(mono.inputs["spectrogram"], stereo.inputs["spectrogram"])


def test_sound_past_the_end_is_silence(tmp_path):
    path = write(tmp_path / "a.wav", sound=sine(1000, 0.5))
    transform = ClipTransform(rgb=None, spectrogram=(100, 64))
    energy = bands(load_clip(path, transform), transform)[0]
    # Frame 50 starts where the sound ends. Normalising and back rounds four times.
    assert (energy[:49].amax(-1) > 0).all()
    bound = 4 * torch.finfo(torch.float32).eps * (abs(SILENCE) + abs(transform.mean))
    assert ((energy[50:] - SILENCE).abs() <= bound).all()


def test_rounded_timestamps_do_not_chop_the_sound(tmp_path):
    # Matroska rounds to milliseconds; 1024 samples at 44.1 kHz last 23.2 ms.
    sound = sine(1000, 2.0, 44100)
    transform = ClipTransform(rgb=None, spectrogram=(150, 64))
    exact, rounded = (
        load_clip(write(tmp_path / name, sound=sound, rate=44100), transform)
        for name in ("a.wav", "a.mkv")
    )
    assert torch.equal(exact.inputs["spectrogram"][0], rounded.inputs["spectrogram"][0])


def test_statistics_are_an_option(tmp_path):
    path = write(tmp_path / "a.wav", sound=sine(1000, 1.0))
    mean, std = MBT_STATISTICS
    plain = ClipTransform(None, (98, 64), mean=0.0, std=1.0)
    official = ClipTransform(None, (98, 64), mean=mean, std=std)
    raw = load_clip(path, plain).inputs["spectrogram"]
    assert torch.equal(load_clip(path, official).inputs["spectrogram"], (raw - mean) / std)


# Views, and both modalities at once.


def test_views_are_synchronous(tmp_path):
    # At 2.0 s the picture turns white and a tone begins.
    levels = [0] * 20 + [255] * 20
    path = write(tmp_path / "a.mkv", levels=levels, sound=sine(1000, 4.0, start=2.0))
    transform = ClipTransform(rgb=(20, 16, 16), spectrogram=(200, 64))
    clip = load_clip(path, transform, n_views=3)
    assert clip.starts["rgb"] == clip.starts["spectrogram"] == (0, 1, 2)
    assert [view.count(0) for view in grey(clip)] == [20, 10, 0]
    silent, middle, loud = bands(clip, transform)
    assert silent[:198].max() < loud.max() - 10
    assert 98 <= onset(middle) <= 100
    assert onset(loud) == 0


def test_sound_that_starts_late_stays_late(tmp_path):
    path = write(tmp_path / "a.mkv", levels=[0, 255] * 10, sound=sine(1000, 1.5))
    transform = ClipTransform(rgb=(20, 16, 16), spectrogram=(200, 64))
    clip = load_clip(shifted(path, tmp_path / "late.mkv", audio=500), transform)
    assert grey(clip) == [[0, 255] * 10]
    assert 48 <= onset(bands(clip, transform)[0]) <= 50


def test_a_clock_that_does_not_start_at_zero(tmp_path):
    levels = [8 * i for i in range(30)]
    path = write(tmp_path / "a.mkv", levels=levels, sound=sine(1000, 3.0, start=1.0))
    transform = ClipTransform(rgb=(10, 16, 16), spectrogram=(100, 64))
    plain = load_clip(path, transform)
    late = load_clip(shifted(path, tmp_path / "late.mkv", audio=5000, video=5000), transform)
    assert late.starts == plain.starts
    assert grey(late) == grey(plain)
    assert torch.equal(late.inputs["spectrogram"], plain.inputs["spectrogram"])


@pytest.mark.parametrize(
    ("duration", "windows", "n_views", "expected"),
    [
        (10, {"rgb": 8, "spectrogram": 8}, 3, {"rgb": [0, 1, 2], "spectrogram": [0, 1, 2]}),
        (10, {"rgb": 8}, 1, {"rgb": [1]}),  # a single view is the middle
        (8, {"rgb": 8}, 4, {"rgb": [0]}),
        (5, {"rgb": 8}, 4, {"rgb": [0]}),
        (10, {"rgb": 2, "spectrogram": 8}, 3, {"rgb": [0, 4, 8], "spectrogram": [0, 1, 2]}),
        (5, {"rgb": 2, "spectrogram": 8}, 2, {"rgb": [0, 3], "spectrogram": [0, 0]}),
    ],
)
def test_view_starts(duration, windows, n_views, expected):
    lengths = {modality: Fraction(seconds) for modality, seconds in windows.items()}
    assert window_starts(Fraction(duration), lengths, view_positions(n_views)) == expected


def test_at_least_one_view():
    with pytest.raises(ValueError, match="n_views must be at least 1, got 0"):
        load_clip(NASA, ClipTransform(), n_views=0)


# Modalities that a file or a model lacks.


def test_video_without_sound(tmp_path):
    path = write(tmp_path / "a.mkv", levels=[1] * 20)
    clip = load_clip(path, ClipTransform((2, 16, 16), (64, 32)))
    assert list(clip.inputs) == list(clip.formats) == ["rgb"]
    with pytest.raises(ClipError, match="holds only video, needed is audio"):
        load_clip(path, ClipTransform(None, (64, 32)))


def test_cover_art_is_not_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as out:
        audio = out.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        cover = out.add_stream("png", pix_fmt="rgb24", width=16, height=16)
        cover.disposition = av.stream.Disposition.attached_pic.value
        picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        out.mux(cover.encode(picture))
        for start in range(0, SAMPLE_RATE, 1024):
            block = sine(440, 0.064)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, start
            out.mux(audio.encode(frame))
        out.mux(audio.encode(None))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    clip = load_clip(path, ClipTransform((2, 16, 16), (64, 32)))
    assert list(clip.inputs) == ["spectrogram"]
    with pytest.raises(ClipError, match="holds only audio, needed is video"):
        load_clip(path, ClipTransform((2, 16, 16), None))


def test_other_streams_are_ignored(tmp_path):
    # Subtitles that outlast the clip neither lengthen it nor make it look cut off.
    text, path = tmp_path / "a.srt", tmp_path / "a.mkv"
    text.write_text("1\n00:00:00,000 --> 00:00:09,000\nhello\n")
    with av.open(str(NASA)) as clip, av.open(str(text)) as lines, av.open(str(path), "w") as out:
        for given in (lines, clip):
            for stream in given.streams:
                out.add_stream_from_template(stream)
        for first, given in ((0, lines), (1, clip)):
            for packet in given.demux():
                if packet.size:
                    packet.stream = out.streams[first + packet.stream.index]
                    out.mux(packet)
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["subtitle", "video", "audio"]
        assert container.duration >= 9_000_000
    loaded = load_clip(path, ClipTransform((2, 16, 16), (64, 32)))
    assert set(loaded.inputs) == {"rgb", "spectrogram"}
    assert 5 <= loaded.duration < 5.1


def test_a_file_with_neither(tmp_path):
    path = tmp_path / "a.srt"
    path.write_text("1\n00:00:00,000 --> 00:00:02,000\nhello\n")
    with pytest.raises(ClipError, match="holds neither video nor audio"):
        load_clip(path, ClipTransform())


# Files that cannot be used.


def cut(path, target, share):
    data = path.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def frames_missing(path):
    """Sound of 4 s, with 2 s of video that the header of its stream says to be 4 s."""
    data = bytearray(write(path, levels=[1] * 20, sound=sine(440, 4)).read_bytes())
    length = data.index(b"vids") + 32  # dwLength of AVISTREAMHEADER, in frames
    data[length : length + 4] = (40).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def bad_files(folder):
    """Files of every bad kind, with a word of the message each must give."""
    (folder / "empty.mp4").touch()
    (folder / "folder.mp4").mkdir()
    (folder / "text.txt").write_text("This is no clip.\n" * 50)
    (folder / "text.mp4").write_text("This is no clip.\n" * 50)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(10000))
    video = write(folder / "whole.mkv", levels=[1] * 40)
    wav = write(folder / "whole.wav", sound=sine(440, 3))
    flac = write(folder / "whole.flac", sound=sine(440, 3))
    data = bytearray(NASA.read_bytes())
    middle = data.index(b"mdat") + 2000
    data[middle : middle + 20000] = bytes(20000)
    (folder / "damaged.mp4").write_bytes(data)
    return {
        folder / "missing.mp4": "no such file",
        folder / "empty.mp4": "empty",
        folder / "folder.mp4": "directory",
        folder / "text.txt": "not a readable media file",
        folder / "text.mp4": "not a readable media file",
        folder / "noise.mp4": "not a readable media file",
        cut(NASA, folder / "head.mp4", 0.01): "not a readable media file",
        cut(NASA, folder / "cut.mp4", 0.6): "cut off, the file ends at 2.* s of 5.00 s",
        cut(video, folder / "cut.mkv", 0.6): "cut off, the file ends at .* s of 4.00 s",
        cut(wav, folder / "cut.wav", 0.6): "cut off, the file ends at 1.80 s of 3.00 s",
        cut(flac, folder / "cut.flac", 0.6): "cut off, the file ends at .* s of 3.00 s",
        frames_missing(folder / "a.avi"): "cut off, the video ends at 2.00 s of 4.00 s",
        cut(NASA, folder / "last.mp4", 0.999): "cut off or damaged at",
        folder / "damaged.mp4": "damaged",
    }


def test_bad_files_are_one_line_each(tmp_path):
    for path, message in bad_files(tmp_path).items():
        with pytest.raises(ClipError, match=message) as raised:
            load_clip(path, ClipTransform((2, 16, 16), (64, 32)))
        text = str(raised.value)
        assert text.startswith(f"{path}: ")
        assert "\n" not in text


def test_a_wav_file_of_unknown_size_is_whole(tmp_path):
    # What programs write to a pipe: they cannot go back to fill in the size.
    path = write(tmp_path / "a.wav", sound=sine(440, 1))
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = b"\xff" * 4
    path.write_bytes(data)
    assert load_clip(path, ClipTransform(None, (64, 32))).duration == 1


def test_a_name_with_a_colon_is_a_file(tmp_path, monkeypatch):
    write(tmp_path / "a.mkv", levels=[1] * 20).rename(tmp_path / "http:a.mkv")
    monkeypatch.chdir(tmp_path)
    assert load_clip("http:a.mkv", ClipTransform((2, 16, 16), None)).duration == 2


def test_decoding_yields_ordered_times():
    with Decoder(probe(Media(NASA))) as decoder:
        times = {k: [t for t, _ in decoder.frames(k, Fraction(0))] for k in ("video", "audio")}
    assert times["video"] == [Fraction(i, 25) for i in range(125)]
    assert times["audio"] == sorted(times["audio"])


def test_what_an_edit_list_leaves_out_is_not_part_of_the_clip(tmp_path):
    # A lossless trim keeps the data and shortens the edit, here to 2000 / 1000 s.
    data = bytearray(NASA.read_bytes())
    edit = data.index(b"elst")
    while edit >= 0:
        data[edit + 12 : edit + 16] = (2000).to_bytes(4, "big")
        edit = data.find(b"elst", edit + 4)
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    clip = load_clip(path, ClipTransform((2, 16, 16), (64, 32)))
    assert 2 <= clip.duration <= 2 + 1024 / SAMPLE_RATE  # sound ends with a whole packet


# Options.


def test_default_stride_is_the_papers():
    transform = ClipTransform()
    assert transform.windows["rgb"].distance == 1  # 25 frames at 25 per second
    assert transform.windows["rgb"].seconds == transform.windows["spectrogram"].seconds == 8
    assert transform.windows["rgb"].min_side == 256
    released = ClipTransform(rgb=(32, 224, 224), stride=2)
    assert released.windows["rgb"].seconds == Fraction(64, 25)
    assert ClipTransform(spectrogram=None).windows["rgb"].seconds == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rgb": None, "spectrogram": None}, "rgb or spectrogram must have a size"),
        ({"rgb": (224, 224)}, "rgb must have 3 sizes"),
        ({"spectrogram": (0, 128)}, "spectrogram must have 2 sizes of at least 1"),
        ({"fps": 0}, "fps must be positive, got 0"),
        ({"stride": -1}, "stride must be positive, got -1"),
        ({"stride": math.nan}, "stride must be positive, got nan"),
        ({"min_side": 0}, "min_side must be positive, got 0"),
        ({"std": 0.0}, "std must be positive, got 0.0"),
        ({"mean": math.inf}, "mean must be finite, got inf"),
        ({"window": "povey"}, "window must be one of hamming, hann"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ClipTransform(**options)


def test_a_model_of_other_modalities_takes_no_clip():
    config = MBTConfig(("depth",), {"depth": (8, 16, 16)}, {"depth": (1, 16, 16)})
    with pytest.raises(ValueError, match="rgb or spectrogram must have a size"):
        ClipTransform.from_config(config)
