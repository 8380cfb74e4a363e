"""From a media file to the inputs of a model."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from mbt_fast.data.decode import Decoder
from mbt_fast.data.media import Media, MediaFile, as_clip_error
from mbt_fast.data.pixels import Crop
from mbt_fast.data.probe import Source, probe
from mbt_fast.data.sound import AudioCollector, AudioWindow
from mbt_fast.data.transform import KIND, ClipTransform
from mbt_fast.data.video import VideoCollector, VideoWindow
from mbt_fast.data.windows import Segment, view_positions, window_starts
from mbt_fast.errors import ClipError

PIXELS = ("float32", "uint8")
ERRORS = ("strict", "tolerate")


@dataclass(frozen=True)
class Clip:
    """The inputs of a model from one file, and what is worth knowing about them.

    Args:
        path: The file.
        transform: What it was read with.
        inputs: ``{"rgb": [V, 3, T, H, W], "spectrogram": [V, time, mel]}``, ``V`` views; only
            modalities that the file has. Float32; ``rgb`` is uint8 if this was asked for.
        duration: Length of the clip in seconds: of the segment, if one was asked for.
        formats: The stream behind each modality, in words.
        starts: Start of each view in seconds from the beginning of the file, per modality.
        lengths: Per modality of ``inputs`` int32 ``[V]``: own tokens up to the end of the clip, as
            ``ClipTransform.n_tokens`` counts them; what follows is padding. 0 if all of a view is.
            Empty if the transform has no ``patch_size``.
        skipped: Damaged packets that were left out.
        faults: What else was tolerated, such as a file that is cut off, in words.
    """

    path: str
    transform: ClipTransform
    inputs: Mapping[str, Tensor]
    duration: float
    formats: Mapping[str, str]
    starts: Mapping[str, tuple[float, ...]]
    lengths: Mapping[str, Tensor]
    skipped: int = 0
    faults: tuple[str, ...] = ()

    @property
    def n_views(self) -> int:
        """Number of views, ``V``."""
        return len(next(iter(self.starts.values())))


def load_clip(
    path: MediaFile,
    transform: ClipTransform,
    n_views: int = 4,
    *,
    start: float | None = None,
    end: float | None = None,
    pixels: str = "float32",
    errors: str = "strict",
) -> Clip:
    """Decode a file into views that are evenly spaced over it, as MBT is tested.

    A clip that goes to the end of the file is checked: every packet is read, though not decoded,
    and a file that is cut off is refused.

    >>> clip = load_clip("clip.mp4", ClipTransform.from_config(model.config))  # doctest: +SKIP
    >>> logits = model(clip.inputs).mean(0)  # doctest: +SKIP

    Args:
        path: A media file: video, audio or both, in any container that FFmpeg reads. A path, the
            content as bytes, or a binary file object.
        transform: What the model takes.
        n_views: Number of views of a clip longer than a window; a shorter one has a single view.
        start: Where the clip begins, in seconds from the beginning of the file.
        end: Where it ends; ``None``, or a time behind it, is the end of the file.
        pixels: ``"float32"`` in [-1, 1], or ``"uint8"`` as decoded.
        errors: ``"strict"`` refuses damaged files and those that are cut off. ``"tolerate"`` skips
            damaged packets and takes what is left.

    Returns:
        The clip, with the modalities that file and model share.

    Raises:
        ClipError: The file cannot be read or decoded, is cut off, or has no modality of the model.
        MemoryError, OSError: Memory or descriptors ran out, or a disk failed.
        ValueError: An option is out of range.
    """
    positions = view_positions(n_views)
    _check_options(start, end, pixels, errors)
    with Media(path) as media:
        source = _probe(media, transform, whole=end is None, errors=errors)
        segment = source.segment(start, end)
        starts = _starts(source, transform, segment, positions)
        return _read(source, transform, segment, starts, pixels=pixels, errors=errors)


def read_window(
    path: MediaFile,
    transform: ClipTransform,
    start: float | None = None,
    end: float | None = None,
    *,
    position: float = 0.5,
    crop: Crop | None = None,
    pixels: str = "float32",
    errors: str = "strict",
) -> Clip:
    """Decode one window of a file, and little more than that.

    The file is opened, searched for the key frame before the window, decoded up to the window's
    end, and closed. So the cost does not grow with the file, but for formats that do not tell how
    long they last (MP3, raw streams): their packets are read, though not decoded. It also means
    that damage elsewhere stays unknown; ``load_clip`` sees the whole file.

    >>> clip = read_window("clip.mp4", transform, position=random())  # doctest: +SKIP

    Args:
        path: As in ``load_clip``.
        transform: What the model takes.
        start: Where the clip begins, in seconds from the beginning of the file.
        end: Where it ends; ``None``, or a time behind it, is the end of the file.
        position: Where in the clip the window lies: the same proportion, from 0 to 1, of the range
            of each modality. A random number gives a random window.
        crop: What part of a frame is shown; ``None`` is the centre.
        pixels: ``"float32"`` in [-1, 1], or ``"uint8"`` as decoded.
        errors: As in ``load_clip``.

    Returns:
        The clip, with one view of the modalities that file and model share.

    Raises:
        ClipError: The window cannot be read or decoded, or the file has no modality of the model.
        MemoryError, OSError: Memory or descriptors ran out, or a disk failed.
        ValueError: An option is out of range.
    """
    if not 0 <= position <= 1:
        raise ValueError(f"position must be in [0, 1], got {position}")
    _check_options(start, end, pixels, errors)
    with Media(path) as media:
        source = _probe(media, transform, whole=False, errors=errors)
        segment = source.segment(start, end)
        starts = _starts(source, transform, segment, [Fraction(position)])
        circular = transform.circular_sound and len(starts) == len(KIND)
        if circular:
            starts["spectrogram"] = starts["rgb"]
        return _read(
            source,
            transform,
            segment,
            starts,
            circular=circular,
            crop=crop,
            pixels=pixels,
            errors=errors,
        )


def _check_options(start: float | None, end: float | None, pixels: str, errors: str) -> None:
    for name, value in (("start", start), ("end", end)):
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be at least 0 and finite, got {value}")
    if end is not None and end <= (start or 0):
        raise ValueError(f"end must be greater than start, got {start or 0} and {end}")
    for option, given, known in (("pixels", pixels, PIXELS), ("errors", errors, ERRORS)):
        if given not in known:
            raise ValueError(f"{option} must be one of {', '.join(known)}, got {given!r}")


def _probe(media: Media, transform: ClipTransform, *, whole: bool, errors: str) -> Source:
    kinds = [KIND[modality] for modality in transform.windows]
    return probe(media, kinds, whole=whole, tolerate=errors == "tolerate")


def _starts(
    source: Source, transform: ClipTransform, segment: Segment, positions: Sequence[Fraction]
) -> dict[str, list[Fraction]]:
    windows = _windows(source, transform)
    lengths = {modality: window.seconds for modality, window in windows.items()}
    return window_starts(segment.duration, lengths, positions)


def _windows(source: Source, transform: ClipTransform) -> dict[str, VideoWindow | AudioWindow]:
    return {m: w for m, w in transform.windows.items() if KIND[m] in source.streams}


def _read(
    source: Source,
    transform: ClipTransform,
    segment: Segment,
    starts: Mapping[str, Sequence[Fraction]],
    *,
    circular: bool = False,
    crop: Crop | None = None,
    pixels: str,
    errors: str,
) -> Clip:
    """Decode the windows that begin at ``starts``, counted from the start of the segment."""
    name, tolerate = source.media.name, errors == "tolerate"
    inputs: dict[str, Tensor] = {}
    valid: dict[str, list[int]] = {}
    windows = _windows(source, transform)
    with Decoder(source, tolerate=tolerate) as decoder:
        # Sound first: its beginning can be read of a file just opened only.
        for modality in sorted(windows, key=KIND.__getitem__):
            window, kind = windows[modality], KIND[modality]
            begins = [segment.start + start for start in starts[modality]]
            wrap = transform.short == "loop" and segment.duration < window.seconds
            with as_clip_error(name, f"its {kind} cannot be read"):
                collector: VideoCollector | AudioCollector
                if isinstance(window, VideoWindow):
                    collector = VideoCollector(window, begins, segment, wrap=wrap, crop=crop)
                else:
                    collector = AudioCollector(window, begins, segment, wrap=wrap or circular)
                _fill(collector, decoder, kind)
                views = collector.finish()
            if views is not None:
                inputs[modality], valid[modality] = views, collector.valid()
            elif not tolerate:
                raise ClipError(f"{name}: no {kind} could be decoded")
    if not all(map(any, zip(*valid.values(), strict=True))) or not inputs:
        raise ClipError(f"{name}: a window holds nothing that can be decoded")
    if "rgb" in inputs and pixels == "float32":
        inputs["rgb"] = inputs["rgb"].float() / 127.5 - 1
    inputs = {modality: inputs[modality] for modality in windows if modality in inputs}
    origin = segment.start - source.start
    return Clip(
        path=name,
        transform=transform,
        inputs=inputs,
        duration=float(segment.duration),
        formats={modality: source.formats[KIND[modality]] for modality in inputs},
        starts={m: tuple(float(origin + start) for start in starts[m]) for m in inputs},
        lengths=_lengths(transform, valid),
        skipped=decoder.skipped,
        faults=source.faults,
    )


def _fill(collector: Any, decoder: Decoder, kind: str) -> None:
    for begin, end in collector.spans():
        with closing(decoder.frames(kind, begin)) as frames:
            for time, frame in frames:
                collector.push(time, frame)
                if collector.reached(end):
                    break
        collector.finish_span(end)


def _lengths(transform: ClipTransform, valid: Mapping[str, list[int]]) -> dict[str, Tensor]:
    if transform.patch_size is None:
        return {}
    return {
        modality: torch.tensor([transform.n_tokens(modality, n) for n in counts], dtype=torch.int32)
        for modality, counts in valid.items()
    }
