"""Augmentation: each change against an independent statement, and what may never happen."""

import colorsys
from collections import Counter

import pytest
import torch

from mbt_fast.train import colour
from mbt_fast.train.augment import Augment, to_float
from mbt_fast.train.mixup import mixup
from mbt_fast.train.sections import AugmentConfig
from mbt_fast.train.spec_augment import spec_augment

B, K, T, SIDE, TIME, MEL = 8, 5, 2, 6, 40, 16
N_TOKENS = {"rgb": 9, "spectrogram": 11}


def config(**changes):
    """No augmentation but what is asked for."""
    return AugmentConfig(**{"flip": 0.0, **changes})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(size=B):
    return {
        "rgb": torch.randint(256, (size, 3, T, SIDE, SIDE), dtype=torch.uint8),
        "spectrogram": torch.randn(size, TIME, MEL),
    }


def classes(size=B):
    return torch.arange(size) % K


def augment(inputs=None, lengths=None, seed=0, **changes):
    inputs = batch() if inputs is None else inputs
    call = Augment(config(**changes), "single", K, n_tokens=N_TOKENS)
    labels = classes(len(next(iter(inputs.values()))))
    return call(inputs, labels, lengths, generator(seed))


# Without changes, and what all changes have in common.


def test_without_augmentation_pixels_become_what_reading_makes_of_them():
    inputs = batch()
    result = augment(inputs)
    assert torch.equal(result.inputs["rgb"], inputs["rgb"].float() / 127.5 - 1)
    assert torch.equal(result.inputs["spectrogram"], inputs["spectrogram"])
    assert result.lengths is None
    for target in result.targets.values():
        assert target.argmax(1).tolist() == classes().tolist()


EVERYTHING = {
    "flip": 0.5, "colour": 0.8, "grey": 0.3, "frequency_mask": 5, "time_mask": 9, "time_masks": 3,
    "time_warp": 2, "mixup": 0.5, "modality_mixup": True, "modality_dropout": 0.3,
}  # fmt: skip


def test_the_generator_decides_everything_and_inputs_stay():
    inputs = batch()
    before = {m: x.clone() for m, x in inputs.items()}
    torch.manual_seed(1)
    first = augment(inputs, **EVERYTHING)
    torch.manual_seed(2)
    again, other = augment(inputs, **EVERYTHING), augment(inputs, seed=1, **EVERYTHING)
    for m, x in inputs.items():
        assert torch.equal(x, before[m])
        for part in ("inputs", "targets", "lengths"):
            assert torch.equal(getattr(first, part)[m], getattr(again, part)[m])
        assert not torch.equal(first.inputs[m], other.inputs[m])
        assert first.inputs[m].dtype == torch.float32


@pytest.mark.gpu
def test_a_gpu_makes_the_same_batch(device):
    inputs = batch()
    there = {m: x.to(device) for m, x in inputs.items()}
    on_cpu = augment(inputs, **EVERYTHING)
    call = Augment(config(**EVERYTHING), "single", K, n_tokens=N_TOKENS)
    on_gpu = call(there, classes().to(device), None, generator())
    for m in inputs:
        torch.testing.assert_close(on_gpu.inputs[m].cpu(), on_cpu.inputs[m])
        assert torch.equal(on_gpu.lengths[m].cpu(), on_cpu.lengths[m])


# Pictures.


def test_a_flip_mirrors_all_frames_of_half_of_the_clips():
    inputs = {"rgb": batch(400)["rgb"]}
    plain, result = to_float(inputs["rgb"]), augment(inputs, flip=0.5).inputs["rgb"]
    flipped = [torch.equal(r, p.flip(-1)) for r, p in zip(result, plain, strict=True)]
    kept = [torch.equal(r, p) for r, p in zip(result, plain, strict=True)]
    assert sum(flipped) + sum(kept) == 400
    assert 150 < sum(flipped) < 250


def as_hsv(x, change):
    """Apply ``change`` to hue, saturation and value of each pixel of [3, ...]."""
    pixels = x.flatten(1).T.tolist()
    out = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in pixels]
    return torch.tensor(out, dtype=x.dtype).T.view_as(x)


def only(**strengths):
    """Draws for one clip with the given changes; 0.5 is none."""
    names = ("brightness", "saturation", "contrast", "hue")
    return torch.tensor([[strengths.get(name, 0.5) for name in names]])


def clip():
    x = torch.rand(1, 3, T, SIDE, SIDE, dtype=torch.float64)
    x[..., 0] = 0.25  # grey pixels
    x[..., 1] = 0.0
    return x


@pytest.mark.parametrize("draw", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_saturation_is_that_of_hsv(draw):
    x = clip()
    factor = 0.6 + 0.8 * draw
    expected = as_hsv(x[0], lambda h, s, v: (h, min(1, s * factor), v))
    torch.testing.assert_close(colour.jitter(x, only(saturation=draw))[0], expected)


@pytest.mark.parametrize("draw", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_hue_is_that_of_hsv(draw):
    x = clip()
    turn = 0.2 * (2 * draw - 1)
    expected = as_hsv(x[0], lambda h, s, v: ((h + turn) % 1, s, v))
    torch.testing.assert_close(colour.jitter(x, only(hue=draw))[0], expected)


@pytest.mark.parametrize("draw", [0.0, 1.0])
def test_brightness_adds_and_clips(draw):
    x = 0.2 + 0.8 * clip()  # what would be negative is cut before saturation, as in tf.image
    expected = (x + (2 * draw - 1) * 32 / 255).clamp(0, 1)
    torch.testing.assert_close(colour.jitter(x, only(brightness=draw)), expected)


@pytest.mark.parametrize("factor", [0.6, 1.4])
def test_contrast_is_about_the_mean_of_each_frame_and_channel(factor):
    x = clip()
    expected = x.clone()
    for c in range(3):
        for t in range(T):
            mean = x[0, c, t].mean()
            expected[0, c, t] = mean + (x[0, c, t] - mean) * factor
    draws = only(contrast=(factor - 0.6) / 0.8)
    torch.testing.assert_close(colour.jitter(x, draws), expected.clamp(0, 1))


def test_colours_stay_in_range_and_finite():
    x = torch.rand(64, 3, 1, 8, 8).round(decimals=1)
    changed = colour.jitter(x, torch.rand(64, 4))
    assert changed.isfinite().all()
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_colour_and_grey_have_their_probabilities():
    inputs = {"rgb": batch(400)["rgb"]}
    plain = to_float(inputs["rgb"])
    jittered = augment(inputs, colour=0.8).inputs["rgb"]
    changed = (jittered - plain).flatten(1).abs().amax(1) > 1e-3
    assert 280 < int(changed.sum()) < 360
    dull = augment(inputs, grey=0.1).inputs["rgb"]
    is_grey = (dull[:, 0] == dull[:, 1]).flatten(1).all(1)
    assert 20 < int(is_grey.sum()) < 70
    luma = sum(w * plain[:, c] for c, w in enumerate((0.2989, 0.587, 0.114)))
    torch.testing.assert_close(dull[is_grey][:, 0], luma[is_grey])


# Spectrograms.


def runs(masked):
    """Lengths of the runs of True."""
    lengths, current = [], 0
    for value in [*masked, False]:
        if value:
            current += 1
        elif current:
            lengths.append(current)
            current = 0
    return lengths


def test_one_frequency_mask_below_its_width_over_all_time():
    x = torch.ones(300, TIME, MEL)
    masked = spec_augment(x, generator(), frequency_mask=5) == 0
    assert (masked == masked[:, :1]).all()
    widths = Counter(sum(runs(row)) for row in masked[:, 0].tolist())
    assert all(len(runs(row)) <= 1 for row in masked[:, 0].tolist())
    assert set(widths) == {0, 1, 2, 3, 4}
    assert masked.any((0, 1)).all()  # every band can be masked


def test_time_masks_below_their_length_over_all_bands():
    x = torch.ones(300, TIME, MEL)
    masked = spec_augment(x, generator(), time_mask=4, time_masks=3) == 0
    assert (masked == masked[:, :, :1]).all()
    rows = masked[:, :, 0].tolist()
    assert max(sum(row) for row in rows) <= 9
    assert max(len(runs(row)) for row in rows) == 3
    assert masked.any((0, 2)).all()


def test_a_mask_wider_than_the_spectrogram_stays_inside():
    for options in ({"frequency_mask": 9}, {"time_mask": 9, "time_masks": 1}):
        masked = spec_augment(torch.ones(50, 3, 2), generator(), **options) == 0
        assert masked.all((1, 2)).any()
        assert not masked.all()


def test_a_warp_moves_one_frame_and_keeps_the_ends():
    ramp = torch.arange(TIME, dtype=torch.float32)[None, :, None].expand(200, TIME, MEL)
    warped = spec_augment(ramp, generator(), time_warp=3)[:, :, 0]
    offset = warped - ramp[:, :, 0]
    assert (warped.diff(dim=1) >= 0).all()
    assert (warped[:, 0] == 0).all()
    assert offset.abs().max().round(decimals=3) <= 3
    moved = {round(float(row[row.abs().argmax()])) for row in offset}
    assert moved == {-3, -2, -1, 0, 1, 2, 3}


def test_a_short_spectrogram_is_warped_without_nan():
    for time in (1, 2, 3):
        assert spec_augment(torch.ones(9, time, 2), generator(), time_warp=2).eq(1).all()


# Mixing.


def mixed(lengths=None, seed=0, **options):
    inputs = {m: to_float(x) for m, x in batch().items()}
    targets = {m: torch.eye(K)[classes()] for m in inputs}
    return inputs, targets, mixup(inputs, targets, lengths, 0.5, generator(seed), **options)


def share_of(actual, x, partner):
    """The share of ``x`` in its mixture with ``partner``."""
    share = ((actual - partner) / (x - partner))[(x - partner).abs() > 0.5].median()
    torch.testing.assert_close(actual, share * x + (1 - share) * partner, atol=1e-5, rtol=0)
    return float(share)


def test_one_share_mixes_inputs_and_labels_with_the_reversed_batch():
    inputs, targets, (x, y, lengths) = mixed()
    share = share_of(x["rgb"], inputs["rgb"], inputs["rgb"].flip(0))
    assert lengths is None
    assert 0 < share < 1
    for m in inputs:
        assert share_of(x[m], inputs[m], inputs[m].flip(0)) == pytest.approx(share, abs=1e-4)
        assert share_of(y[m], targets[m], targets[m].flip(0)) == pytest.approx(share, abs=1e-4)


def test_modality_mixup_draws_a_share_for_each_modality():
    inputs, targets, (x, y, _) = mixed(seed=1, modality_mixup=True)
    shares = {m: share_of(x[m], inputs[m], inputs[m].flip(0)) for m in inputs}
    assert abs(shares["rgb"] - shares["spectrogram"]) > 0.01
    for m in inputs:
        assert share_of(y[m], targets[m], targets[m].flip(0)) == pytest.approx(shares[m], abs=1e-4)


def test_a_modality_that_one_of_two_lacks_is_not_mixed():
    whole = torch.full((B,), 7, dtype=torch.int32)
    lengths = {"rgb": whole, "spectrogram": whole.clone()}
    lengths["spectrogram"][0] = 0
    lengths["spectrogram"][2] = 3
    inputs, targets, (x, y, valid) = mixed(lengths)
    for index in (0, B - 1):
        assert torch.equal(x["spectrogram"][index], inputs["spectrogram"][index])
        assert torch.equal(y["spectrogram"][index], targets["spectrogram"][index])
    assert valid["spectrogram"].tolist() == [0, 7, 7, 7, 7, 7, 7, 7]
    assert valid["rgb"].tolist() == [7] * B
    assert 0 < share_of(x["rgb"], inputs["rgb"], inputs["rgb"].flip(0)) < 1


def test_one_label_is_mixed_where_both_have_the_same_modalities():
    whole = torch.full((B,), 7, dtype=torch.int32)
    lengths = {"rgb": whole, "spectrogram": whole.clone()}
    lengths["spectrogram"][[0, 2, B - 3]] = 0
    inputs, targets, (x, y, valid) = mixed(lengths, joint=True)
    assert torch.equal(y["rgb"], y["spectrogram"])
    for m in inputs:
        for index in (0, B - 1):
            assert torch.equal(x[m][index], inputs[m][index])
        assert torch.equal(y[m][[0, B - 1]], targets[m][[0, B - 1]])
    for index in (1, 2):  # both whole, both silent
        assert 0 < share_of(x["rgb"][index], *(inputs["rgb"][i] for i in (index, -1 - index))) < 1
    assert valid["spectrogram"].tolist() == [0, 7, 0, 7, 7, 0, 7, 7]


def test_one_output_of_the_model_has_one_target():
    inputs = batch()
    call = Augment(config(mixup=0.4), "single", K, joint=True)
    targets = call(inputs, classes(), None, generator()).targets
    assert list(targets) == ["shared"]
    assert targets["shared"].sum(1).tolist() == pytest.approx([1.0] * B)


def test_shares_are_of_the_beta_distribution():
    x = {"rgb": torch.tensor([[1.0], [0.0]])}
    source = generator()
    shares = torch.cat([mixup(x, x, None, 0.5, source)[0]["rgb"][0] for _ in range(2000)])
    # Beta(1/2, 1/2) is the arcsine law: P(share <= s) = 2 / pi * asin(sqrt(s)).
    for s in (0.05, 0.25, 0.5, 0.95):
        expected = 2 / torch.pi * torch.tensor(s).sqrt().asin()
        assert abs((shares <= s).double().mean() - expected) < 0.04


# Modality dropout.


def test_dropout_takes_one_of_several_modalities_and_never_the_last():
    lengths = {m: torch.full((600,), n, dtype=torch.int32) for m, n in N_TOKENS.items()}
    lengths["rgb"][:200] = 0
    result = augment(batch(600), lengths, modality_dropout=0.5).lengths
    assert (result["rgb"][:200] == 0).all()
    assert (result["spectrogram"][:200] == 11).all()
    gone = {m: int((value[200:] == 0).sum()) for m, value in result.items()}
    assert all(60 < count < 140 for count in gone.values())
    assert ((result["rgb"] > 0) | (result["spectrogram"] > 0)).all()
    assert set(result["rgb"].tolist()) == {0, 9}


def test_dropout_makes_lengths_of_a_whole_batch():
    result = augment(modality_dropout=0.5)
    assert {m: value.max().item() for m, value in result.lengths.items()} == N_TOKENS
    assert result.lengths["rgb"].dtype == torch.int32


def test_a_single_modality_is_never_dropped():
    result = augment({"rgb": batch()["rgb"]}, modality_dropout=0.9)
    assert result.lengths["rgb"].tolist() == [9] * B


def test_dropout_needs_to_know_whole_lengths():
    with pytest.raises(ValueError, match="n_tokens must be given for modality dropout"):
        Augment(config(modality_dropout=0.1), "single", K)
