"""Small media files, and what a test reads back of them."""

from collections import Counter
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from mbt_fast.data.decode import Decoder
from mbt_fast.data.sound import SAMPLE_RATE

NASA = Path(__file__).parents[1] / "golden" / "nasa.mp4"


def sine(hertz, seconds, rate=SAMPLE_RATE, *, start=0.0, channels=1, level=0.5):
    """[channels, samples] of a tone that begins at ``start``."""
    time = np.arange(int(seconds * rate)) / rate
    tone = level * np.sin(2 * np.pi * hertz * time) * (time >= start)
    return np.tile(tone, (channels, 1)).astype(np.float32)


def write(path, *, levels=None, fps=10, size=(32, 32), rotation=None, sound=None, rate=SAMPLE_RATE):
    """A file with lossless video of the grey ``levels`` or whole pictures, and lossless sound."""
    with av.open(str(path), "w") as out:
        video = audio = None
        if levels is not None:
            video = out.add_stream("ffv1", rate=fps, pix_fmt="bgr0", width=size[1], height=size[0])
            if rotation is not None:
                video.set_display_rotation(rotation)
        if sound is not None:
            layout = {1: "mono", 2: "stereo"}[len(sound)]
            codec = "flac" if path.suffix == ".flac" else "pcm_s16le"
            audio = out.add_stream(codec, rate=rate, layout=layout, format="s16")
        for index, level in enumerate(levels if levels is not None else ()):
            pixels = np.broadcast_to(np.uint8(level), (*size, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            out.mux(video.encode(frame.reformat(format="bgr0")))
        for start in range(0, 0 if sound is None else sound.shape[1], 1024):
            block = np.round(32767 * sound[:, start : start + 1024]).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(block.T.reshape(1, -1)), format="s16", layout=layout
            )
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            out.mux(audio.encode(frame))
        for stream in (video, audio):
            if stream is not None:
                out.mux(stream.encode(None))
    return path


def shifted(source, path, **milliseconds):
    """A copy of a Matroska file whose streams, ``video`` or ``audio``, begin later."""
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        streams = [out.add_stream_from_template(stream) for stream in given.streams]
        for packet in given.demux():
            if packet.size:
                packet.pts += milliseconds.get(packet.stream.type, 0)
                packet.dts = packet.pts
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return path


def grey(clip):
    """The grey level of each frame, [views, frames]; every pixel must have it."""
    pixels = clip.inputs["rgb"]
    level = pixels[:, :1, :, :1, :1]
    assert torch.equal(pixels, level.expand_as(pixels))
    return ((level[:, 0, :, 0, 0] + 1) * 127.5).round().int().tolist()


def bands(clip, transform):
    """Log-mel energies before normalisation, [views, time, mel]."""
    return clip.inputs["spectrogram"] * transform.std + transform.mean


def onset(energy):
    """First spectrogram frame whose energy is within a factor of 2 of the loudest."""
    loudness = energy.exp().sum(-1)
    return int((loudness > loudness.max() / 2).int().argmax())


def encode(
    path, *, video=None, audio=None, seconds=10, fps=25, gop=50, rate=44100, pixels="yuv420p"
):
    """A file of named codecs: a moving pattern whose left edge counts frames, and a rising tone."""
    generator = np.random.default_rng(0)
    base = generator.integers(0, 128, (48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as out:
        pictures = sounds = None
        if video:
            pictures = out.add_stream(video, rate=fps, pix_fmt=pixels, width=64, height=48)
            pictures.gop_size = gop
            pictures.codec_context.thread_count = 1
        if audio:
            sounds = out.add_stream(audio, rate=rate, layout="mono")
        time = np.arange(seconds * rate if audio else 0) / rate
        tone = (0.4 * np.sin(2 * np.pi * (200 + 60 * time) * time)).astype(np.float32)
        for index in range(seconds * fps):
            if pictures:
                picture = np.roll(base, index, axis=1)
                picture[:, :8] = index % 256
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
                frame.pts, frame.time_base = index, Fraction(1, fps)
                out.mux(pictures.encode(frame))
            if sounds:
                low, high = (rate * i // fps for i in (index, index + 1))
                frame = av.AudioFrame.from_ndarray(tone[None, low:high], "fltp", "mono")
                frame.sample_rate, frame.pts, frame.time_base = rate, low, Fraction(1, rate)
                out.mux(sounds.encode(frame))
        for stream in (pictures, sounds):
            if stream is not None:
                out.mux(stream.encode(None))
    return path


@contextmanager
def counted(monkeypatch):
    """Count what is read of files inside the block: opened, sought, packets, frames."""
    counts = Counter()

    def seek(self, kind, target, _open=Decoder._open_at):
        counts["sought" if target is not None else "from the beginning"] += 1
        return _open(self, kind, target)

    def packets(self, kind, target, _packets=Decoder._packets):
        for packet in _packets(self, kind, target):
            counts[f"{kind} packets"] += 1
            yield packet

    def frames(self, packet, end, _frames=Decoder._frames_of):
        found = _frames(self, packet, end)
        counts["frames"] += len(found)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "_open_at", seek)
        patch.setattr(Decoder, "_packets", packets)
        patch.setattr(Decoder, "_frames_of", frames)
        yield counts
