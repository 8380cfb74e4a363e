"""Log-mel spectrograms in the convention of Kaldi.

Sources: Kaldi's ``feature-window.cc`` and ``mel-computations.cc`` for the arithmetic; Gong et al.,
"AST: Audio Spectrogram Transformer" (2021) and Nagrani et al. (2021) for 128 bins at 16 kHz.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

FLOOR = torch.finfo(torch.float32).eps  # Kaldi's, whatever the dtype, so that silence is one number


def _raised_cosine(size: int, offset: float) -> Tensor:
    phase = torch.arange(size, dtype=torch.float64) * (2 * math.pi / max(size - 1, 1))
    return offset - (1 - offset) * torch.cos(phase)


WINDOWS: dict[str, Callable[[int], Tensor]] = {
    "hamming": lambda size: _raised_cosine(size, 0.54),
    "hann": lambda size: _raised_cosine(size, 0.5),
}


def log_mel(
    waveform: Tensor,
    *,
    sample_rate: int = 16000,
    n_mels: int = 128,
    window_ms: float = 25.0,
    hop_ms: float = 10.0,
    window: str = "hamming",
    low_hz: float = 20.0,
    high_hz: float | None = None,
    preemphasis: float = 0.97,
) -> Tensor:
    """Natural logarithm of the energy in mel bands, as Kaldi computes it (without dither).

    Each frame loses its mean, is pre-emphasised as ``x[i] - preemphasis * x[i - 1]`` (with
    ``x[-1] = x[0]``) and windowed. Its power spectrum, of the next power of two samples, is summed
    in triangles on the scale ``1127 ln(1 + f / 700)``. Bands below float32's epsilon are raised to
    it; bands narrower than the spectrum's resolution may be empty and then lie there always (one of
    128 at 16 kHz). Differentiable, twice as well.

    >>> log_mel(torch.zeros(2, 16000)).shape
    torch.Size([2, 98, 128])

    Args:
        waveform: ``[..., samples]``, float32 or float64, on any device. Scaling it by ``a`` adds
            ``2 ln a``; the statistics in ``mbt_fast.data.transform`` belong to samples in [-1, 1].
        sample_rate: Samples per second.
        n_mels: Number of bands.
        window_ms: Length of a frame in milliseconds; a fraction of a sample is dropped.
        hop_ms: Distance of frames in milliseconds; a fraction of a sample is dropped.
        window: ``"hamming"`` (the MBT paper) or ``"hann"`` (AST; Kaldi's "hanning"); symmetric.
        low_hz: Lower edge of the lowest band.
        high_hz: Upper edge of the highest band; ``None`` is half the sample rate.
        preemphasis: Coefficient of the pre-emphasis, in [0, 1].

    Returns:
        ``[..., frames, n_mels]`` in the dtype of the waveform. Only whole frames count:
        ``frames = 1 + (samples - frame_length) // hop``.

    Raises:
        TypeError: The waveform is not float32 or float64.
        ValueError: It is shorter than one frame, or an option is out of range.
    """
    size, hop = frame_samples(sample_rate, window_ms, hop_ms)
    high_hz = sample_rate / 2 if high_hz is None else high_hz
    _check_waveform(waveform, size)
    _check_options(sample_rate, n_mels, window, low_hz, high_hz, preemphasis)
    n_fft = 1 << (size - 1).bit_length()
    taper = WINDOWS[window](size).to(waveform)
    filters = mel_filters(n_mels, n_fft, sample_rate, low_hz, high_hz).to(waveform)

    frames = waveform.unfold(-1, size, hop)
    frames = frames - frames.mean(-1, keepdim=True)
    previous = torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)
    spectrum = torch.fft.rfft((frames - preemphasis * previous) * taper, n=n_fft)
    power = spectrum.real.square() + spectrum.imag.square()
    return (power @ filters).clamp(min=FLOOR).log()


def frame_samples(
    sample_rate: int = 16000, window_ms: float = 25.0, hop_ms: float = 10.0
) -> tuple[int, int]:
    """Length and distance of frames in samples.

    Raises:
        ValueError: One of them is below its least: two samples and one sample.
    """
    size, hop = int(sample_rate * window_ms / 1000), int(sample_rate * hop_ms / 1000)
    if size < 2:
        raise ValueError(f"window_ms must span at least two samples, got {window_ms}")
    if hop < 1:
        raise ValueError(f"hop_ms must span at least one sample, got {hop_ms}")
    return size, hop


def mel_filters(n_mels: int, n_fft: int, sample_rate: int, low_hz: float, high_hz: float) -> Tensor:
    """Weights of the triangular bands, evenly spaced and linear in mel.

    Float64 ``[n_fft // 2 + 1, n_mels]`` on the CPU.
    """
    bins = _mel(torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (sample_rate / n_fft))
    low, high = _mel(torch.tensor((low_hz, high_hz), dtype=torch.float64))
    step = (high - low) / (n_mels + 1)
    position = (bins[:, None] - low) / step - torch.arange(n_mels)  # 0 left, 1 centre, 2 right
    return torch.minimum(position, 2 - position).clamp(min=0)


def _mel(hertz: Tensor) -> Tensor:
    return 1127 * torch.log1p(hertz / 700)


def _check_waveform(waveform: Tensor, size: int) -> None:
    if waveform.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"waveform must be float32 or float64, got {waveform.dtype}")
    if waveform.ndim < 1 or waveform.shape[-1] < size:
        raise ValueError(
            f"waveform must be [..., samples] with at least {size} samples (one frame), "
            f"got shape {list(waveform.shape)}"
        )


def _check_options(
    sample_rate: int, n_mels: int, window: str, low_hz: float, high_hz: float, preemphasis: float
) -> None:
    if n_mels < 1:
        raise ValueError(f"n_mels must be at least 1, got {n_mels}")
    if window not in WINDOWS:
        raise ValueError(f"window must be one of {', '.join(WINDOWS)}, got {window!r}")
    if not 0 <= low_hz < high_hz <= sample_rate / 2:
        raise ValueError(
            f"low_hz and high_hz must satisfy 0 <= low_hz < high_hz <= {sample_rate / 2:g}, "
            f"got {low_hz:g} and {high_hz:g}"
        )
    if not 0 <= preemphasis <= 1:
        raise ValueError(f"preemphasis must be in [0, 1], got {preemphasis}")
