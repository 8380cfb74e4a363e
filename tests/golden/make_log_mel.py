"""Record log-mel spectrograms of independent implementations in ``log_mel.npz``.

Needs ``av``, ``numpy``, ``transformers`` (its numpy code, no torch) and ``kaldi-native-fbank``:

    python tests/golden/make_log_mel.py

The arrays, for each signal ("chirp", "speech"): ``<signal>`` int16 [samples] at 16 kHz, to be
divided by 32768; ``<signal>_hamming`` and ``<signal>_hann`` float64 [frames, 128] by transformers;
``<signal>_kaldi`` float32 [frames, 80] by kaldi-native-fbank, Hamming window.
"""

from pathlib import Path

import av
import kaldi_native_fbank as knf
import numpy as np
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

FOLDER = Path(__file__).parent
RATE = 16000


def chirp() -> np.ndarray:
    """A sweep from 50 Hz to 7.5 kHz over noise and a constant offset, 0.3 s."""
    t = np.arange(int(0.3 * RATE)) / RATE
    sweep = np.sin(2 * np.pi * (50 * t + (7500 - 50) / (2 * 0.3) * t**2))
    noise = np.random.default_rng(0).standard_normal(t.size)
    return np.round(32768 * (0.5 * sweep + 0.01 * noise + 0.05)).astype(np.int16)


def speech() -> np.ndarray:
    """0.25 s of the clip's sound, from 1.5 s on."""
    with av.open(str(FOLDER / "nasa.mp4")) as container:
        samples = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    piece = samples.mean(0)[int(1.5 * RATE) : int(1.75 * RATE)]
    return np.round(32768 * piece).astype(np.int16)


def by_transformers(waveform: np.ndarray, window: str) -> np.ndarray:
    """What ASTFeatureExtractor computes where torchaudio is missing, in float64."""
    filters = mel_filter_bank(
        num_frequency_bins=257,
        num_mel_filters=128,
        min_frequency=20,
        max_frequency=RATE // 2,
        sampling_rate=RATE,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    bands = spectrogram(
        waveform,
        window_function(400, window, periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=float(np.finfo(np.float32).eps),
        remove_dc_offset=True,
        dtype=np.float64,
    )
    return bands.T


def by_kaldi(waveform: np.ndarray) -> np.ndarray:
    """Kaldi's own code. It refuses 128 bands at 16 kHz, because one of them is empty."""
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hamming"
    options.mel_opts.num_bins = 80
    options.mel_opts.high_freq = 0.0
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(RATE, waveform.astype(np.float32).tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


def main() -> None:
    """Write the file."""
    arrays = {}
    for make in (chirp, speech):
        samples = make()
        waveform = samples / 32768
        arrays[make.__name__] = samples
        for window in ("hamming", "hann"):
            arrays[f"{make.__name__}_{window}"] = by_transformers(waveform, window)
        arrays[f"{make.__name__}_kaldi"] = by_kaldi(waveform)
    np.savez_compressed(FOLDER / "log_mel.npz", **arrays)


if __name__ == "__main__":
    main()
