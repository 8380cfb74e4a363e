"""What is shown of one view of a clip, and when it happens."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mbt_fast.data import Clip
from mbt_fast.models import MBTConfig
from mbt_fast.models.fused_classifier import FusedConfig
from mbt_fast.rollout import Rollout

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
REST = "CLS and bottleneck tokens"


@dataclass(frozen=True)
class Video:
    """Frames and their map.

    Args:
        frames: ``[t, H, W]``, brightness from 0 to 1: of each patch's frames the middle one.
        shares: ``[t, h, w]``, share of each patch.
        times: When the frames of each patch begin, in seconds from the beginning of the file.
        start: Of the first frame that the clip gave.
        seconds: From that to the end of the last.
    """

    frames: Tensor
    shares: Tensor
    times: tuple[float, ...]
    start: float
    seconds: float


@dataclass(frozen=True)
class Sound:
    """A spectrogram and its map.

    Args:
        spectrogram: ``[time, mel]``, as the model takes it.
        shares: ``[t, m]``, share of each patch.
        start: In seconds from the beginning of the file.
        seconds: Its length.
    """

    spectrogram: Tensor
    shares: Tensor
    start: float
    seconds: float


@dataclass(frozen=True)
class View:
    """One view.

    Args:
        video: ``None`` if the clip or the model has none.
        sound: Likewise.
        shares: Where the mass of each classifier goes, and the mean of all: name to place to share.
            Places are the modalities, for their patches, and the rest.
        read: Per modality ``[layers, P]``: what its tokens read from each bottleneck token; empty
            where no layer has these.
        written: Likewise, what they wrote.
        first_layer: The first of these layers.
    """

    video: Video | None
    sound: Sound | None
    shares: Mapping[str, Mapping[str, float]]
    read: Mapping[str, Tensor]
    written: Mapping[str, Tensor]
    first_layer: int

    @property
    def span(self) -> tuple[float, float]:
        """Start and end in seconds, of video and sound together."""
        parts = [part for part in (self.video, self.sound) if part is not None]
        return min(p.start for p in parts), max(p.start + p.seconds for p in parts)


def views_of(clip: Clip, rollout: Rollout, config: MBTConfig | FusedConfig) -> list[View]:
    """The views of a clip.

    Args:
        clip: With pixels as float.
        rollout: Of its inputs.
        config: Of the model.
    """
    maps = {m: x.cpu() for m, x in rollout.items()}
    return [
        View(
            video=_video(clip, maps["rgb"][index], index, config) if "rgb" in maps else None,
            sound=_sound(clip, maps["spectrogram"][index], index)
            if "spectrogram" in maps
            else None,
            shares=_shares(rollout, index),
            read={m: x[index].cpu() for m, x in rollout.read.items()},
            written={m: x[index].cpu() for m, x in rollout.written.items()},
            first_layer=config.fusion_layer,
        )
        for index in range(clip.n_views)
    ]


def _video(clip: Clip, shares: Tensor, index: int, config: MBTConfig | FusedConfig) -> Video:
    pixels = (clip.inputs["rgb"][index].float().cpu() + 1) / 2
    luma = pixels.new_tensor(LUMA)[:, None, None, None]
    frames = (pixels * luma).sum(dim=0).clamp(0, 1)
    sampled = config.sampled_frames("rgb") if isinstance(config, MBTConfig) else None
    numbers = list(range(len(frames))) if sampled is None else list(sampled)
    each = len(numbers) // len(shares)  # frames of a patch
    window, start = clip.transform.windows["rgb"], clip.starts["rgb"][index]
    seconds = float(window.seconds)
    times = tuple(start + seconds * first / len(frames) for first in numbers[::each])
    return Video(frames[numbers[each // 2 :: each]], shares, times, start, seconds)


def _sound(clip: Clip, shares: Tensor, index: int) -> Sound:
    window = clip.transform.windows["spectrogram"]
    spectrogram = clip.inputs["spectrogram"][index].float().cpu()
    return Sound(spectrogram, shares, clip.starts["spectrogram"][index], float(window.seconds))


def _shares(rollout: Rollout, index: int) -> dict[str, dict[str, float]]:
    """What goes to no patch is the rest, for every row sums to one."""
    sources = {f"from {source}": maps for source, maps in rollout.by_source.items()}
    rows = {}
    for name, maps in {**sources, "mean": rollout}.items():
        rows[name] = {m: x[index].sum().item() for m, x in maps.items()}
        rows[name][REST] = max(0.0, 1 - sum(rows[name].values()))
    return rows
