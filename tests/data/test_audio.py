"""``log_mel`` against independent implementations, and its rules."""

import math
from pathlib import Path

import pytest
import torch

from mbt_fast.data.audio import FLOOR, WINDOWS, log_mel, mel_filters

np = pytest.importorskip("numpy")

GOLDEN = Path(__file__).parents[1] / "golden" / "log_mel.npz"
SIGNALS = ("chirp", "speech")
EPS32 = torch.finfo(torch.float32).eps
EPS64 = torch.finfo(torch.float64).eps
N_FFT, SIZE, HOP = 512, 400, 160


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def rounding(waveform, dtype, n_mels=128, weight_error=0.0):
    """How far the logarithms may be off if everything before them is rounded to ``dtype``.

    The mean, the pre-emphasis (two roundings) and the window each round a sample once more, and
    each of the FFT's log2(n) stages rounds the spectrum; so a bin is off by
    ``delta = (4 + log2 n) eps |x|``, with |x| the norm of the frame. In a band with weights w,
    power p = |X|^2 and sum m = w.p the error is at most ``w.(2 |X| delta + delta^2)``, and
    ``weight_error`` times the power inside the band. The logarithm's is that over m (over the
    floor where m is below it), and one rounding of its own.
    """
    eps = torch.finfo(dtype).eps
    frames = waveform.double().unfold(-1, SIZE, HOP)
    delta = (4 + math.log2(N_FFT)) * eps * frames.norm(dim=-1, keepdim=True)
    centred = frames - frames.mean(-1, keepdim=True)
    emphasised = centred - 0.97 * torch.cat((centred[..., :1], centred[..., :-1]), -1)
    power = torch.fft.rfft(emphasised * WINDOWS["hamming"](SIZE), n=N_FFT).abs().square()
    weights = mel_filters(n_mels, N_FFT, 16000, 20, 8000)
    off = (2 * power.sqrt() * delta + delta.square()) @ weights
    off = off + weight_error * (power @ (weights > 0).double())
    return off / (power @ weights).clamp(min=FLOOR) + eps * abs(math.log(FLOOR))


@pytest.mark.parametrize("window", ["hamming", "hann"])
@pytest.mark.parametrize("signal", SIGNALS)
def test_agrees_with_transformers(golden, signal, window):
    # transformers rounds its spectrum to complex64, each part by at most eps / 2: a power, and so
    # a sum of powers, by at most eps. The rest is float64, whose own error is far smaller.
    actual = log_mel(golden[signal].double() / 32768, window=window)
    tolerance = EPS32 + rounding(golden[signal] / 32768, torch.float64)
    assert actual.shape == golden[f"{signal}_{window}"].shape
    assert ((actual - golden[f"{signal}_{window}"]).abs() <= tolerance).all()


@pytest.mark.parametrize("signal", SIGNALS)
def test_agrees_with_kaldi(golden, signal):
    # Kaldi computes in float32, filters included: mel values up to 2840, each rounded, over a band
    # that is mel_step wide, give a weight an error of 4 eps * 2840 / mel_step.
    mel = 1127 * math.log1p(8000 / 700)
    waveform = golden[signal].double() / 32768
    step = (mel - 1127 * math.log1p(20 / 700)) / 81
    tolerance = rounding(waveform, torch.float32, n_mels=80, weight_error=4 * EPS32 * mel / step)
    actual = log_mel(waveform, n_mels=80)
    assert ((actual - golden[f"{signal}_kaldi"]).abs() <= tolerance).all()


@pytest.mark.parametrize("signal", SIGNALS)
def test_float32_is_rounding_away_from_float64(golden, signal):
    waveform = golden[signal].double() / 32768
    actual = log_mel(waveform.float())
    assert actual.dtype == torch.float32
    assert ((actual - log_mel(waveform)).abs() <= rounding(waveform, torch.float32)).all()


@pytest.mark.parametrize("wrong", [{"window": "hann"}, {"preemphasis": 0.96}, {"low_hz": 21.0}])
def test_tolerances_notice_a_wrong_option(golden, wrong):
    waveform = golden["speech"].double() / 32768
    error = (log_mel(waveform, **wrong) - golden["speech_hamming"]).abs()
    assert (error > rounding(waveform, torch.float32)).any()


def test_only_whole_frames_count():
    for samples, frames in ((400, 1), (559, 1), (560, 2), (128240, 800)):
        assert log_mel(torch.zeros(samples)).shape == (frames, 128)


def test_silence_and_a_constant_are_the_floor():
    # The constant's mean is exact, so nothing is left of it.
    for level in (0.0, 0.5):
        bands = log_mel(torch.full((400,), level))
        assert torch.equal(bands, torch.full_like(bands, FLOOR).log())


def test_gain_adds_its_log(golden):
    waveform = golden["speech"].double() / 32768
    quiet, loud = log_mel(waveform), log_mel(waveform * 4)
    heard = quiet > math.log(FLOOR)
    assert heard.any()
    bound = 2 * EPS64 * abs(math.log(FLOOR))  # a gain of 4 is exact; each logarithm rounds once
    assert ((loud - quiet - 2 * math.log(4))[heard].abs() <= bound).all()


def test_leading_dimensions_are_a_batch(golden):
    rows = (golden["speech"].double() / 32768).unfold(0, 2000, 1000)
    batched = log_mel(rows[None])
    alone = torch.stack([log_mel(row) for row in rows])
    tolerance = rounding(rows, torch.float64)
    assert batched.shape == (1, 3, 11, 128)
    assert ((batched[0] - alone).abs() <= tolerance).all()


def test_a_tone_lands_in_its_band():
    time = torch.arange(1600, dtype=torch.float64) / 16000
    for hertz in (500.0, 1000.0, 4000.0):
        bands = log_mel(torch.sin(2 * math.pi * hertz * time))
        centres = torch.linspace(1127 * math.log1p(20 / 700), 1127 * math.log1p(8000 / 700), 130)
        nearest = (centres[1:-1] - 1127 * math.log1p(hertz / 700)).abs().argmin()
        assert (bands.argmax(-1) - nearest).abs().max() <= 1


def test_filters_sum_to_one_between_the_outer_centres():
    weights = mel_filters(20, N_FFT, 16000, 20, 8000)
    inside = weights.sum(1)[5:200]
    assert (inside - 1).abs().max() <= 8 * 21 * EPS64  # positions up to 21, each rounded twice


def test_one_of_128_bands_is_empty_as_in_kaldi():
    empty = (mel_filters(128, N_FFT, 16000, 20, 8000).sum(0) == 0).sum()
    assert empty == 1


def test_gradients():
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randn(2, 96, dtype=torch.float64, generator=generator, requires_grad=True)

    def small(x):
        return log_mel(x, sample_rate=1000, n_mels=3, window_ms=32.0, hop_ms=16.0)

    assert torch.autograd.gradcheck(small, waveform)
    assert torch.autograd.gradgradcheck(small, waveform)


def test_compiles_without_a_graph_break():
    waveform = torch.randn(2, 800, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(log_mel, fullgraph=True, backend="aot_eager")
    difference = (compiled(waveform) - log_mel(waveform)).abs()
    assert (difference <= rounding(waveform, torch.float64)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match="waveform must be float32 or float64"):
        log_mel(torch.zeros(400, dtype=dtype))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((399,), {}, "at least 400 samples"),
        ((3, 0), {}, "at least 400 samples"),
        ((), {}, r"\[\.\.\., samples\]"),
        ((400,), {"n_mels": 0}, "n_mels must be at least 1"),
        ((400,), {"window": "povey"}, "window must be one of hamming, hann"),
        ((400,), {"low_hz": -1.0}, "low_hz and high_hz"),
        ((400,), {"low_hz": 4000.0, "high_hz": 4000.0}, "low_hz and high_hz"),
        ((400,), {"high_hz": 8001.0}, "low_hz and high_hz"),
        ((400,), {"preemphasis": 1.5}, "preemphasis must be in"),
        ((400,), {"hop_ms": 0.0}, "hop_ms must span"),
        ((400,), {"window_ms": 0.1}, "window_ms must span"),
    ],
)
def test_bad_arguments_are_named(shape, options, message):
    with pytest.raises(ValueError, match=message):
        log_mel(torch.zeros(shape), **options)
