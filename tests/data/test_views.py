"""What a view shows: crops, pixels, what fills a short clip, and how much of it is padding."""

import math

import pytest
import torch

from mbt_fast import MBTConfig, create_model
from mbt_fast.data import ClipTransform, Crop, collate, load_clip, read_window
from mbt_fast.data.audio import FLOOR, log_mel

av = pytest.importorskip("av")
np = pytest.importorskip("numpy")
from media_files import NASA, bands, grey, sine, write  # noqa: E402

PATCHES = {"rgb": (2, 8, 8), "spectrogram": (10, 16)}


def transform(frames=4, time=100, **options):
    """0.1 s a frame, in files of ten frames a second."""
    given = {"stride": 2.5, "patch_size": PATCHES, **options}
    return ClipTransform((frames, 16, 16), (time, 32), **given)


def levels(clip):
    return grey(clip)[0]


@pytest.fixture
def half_second(tmp_path):
    """Five frames of levels 10 to 50, and a tone that rises."""
    time = np.arange(8000) / 16000
    sound = 0.5 * np.sin(2 * np.pi * (300 + 1000 * time) * time)[None].astype(np.float32)
    return write(tmp_path / "a.mkv", levels=[10, 20, 30, 40, 50], sound=sound)


# Crops and pixels.


def gradient(height, width):
    """Red counts rows and green columns."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.arange(height)[:, None]
    picture[..., 1] = np.arange(width)
    return picture


@pytest.mark.parametrize(
    ("crop", "top", "left"),
    [
        (None, 8, 24),
        (Crop(), 8, 24),
        (Crop(top=0, left=0), 0, 0),
        (Crop(top=1, left=1), 16, 48),
        (Crop(top=0.25, left=0.75), 4, 36),
    ],
)
def test_crop_takes_its_proportion_of_the_free_range(tmp_path, crop, top, left):
    path = write(tmp_path / "a.mkv", levels=[gradient(32, 64)], size=(32, 64))
    form = ClipTransform((1, 16, 16), None, min_side=32)
    pixels = read_window(path, form, crop=crop, pixels="uint8").inputs["rgb"]
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (1, 3, 1, 16, 16)
    expected = gradient(32, 64)[top : top + 16, left : left + 16]
    assert torch.equal(pixels[0, :, 0].permute(1, 2, 0), torch.from_numpy(expected))


def test_scales_stretch_height_and_width_on_their_own(tmp_path):
    # Rows of 0 to 31 spread over twice the height advance by half a level a row.
    path = write(tmp_path / "a.mkv", levels=[gradient(32, 64)], size=(32, 64))
    form = ClipTransform((1, 16, 16), None, min_side=32)
    pixels = read_window(path, form, crop=Crop(height_scale=2.0), pixels="uint8").inputs["rgb"]
    red, green = pixels[0, 0, 0].int(), pixels[0, 1, 0].int()
    assert red[:, 0].tolist() == sorted(red[:, 0].tolist())
    assert red[-1, 0] - red[0, 0] in (7, 8)
    assert (green[0, -1] - green[0, 0]) == 15


def test_a_scale_never_makes_the_frame_smaller_than_the_crop(tmp_path):
    path = write(tmp_path / "a.mkv", levels=[gradient(32, 64)], size=(32, 64))
    form = ClipTransform((1, 32, 32), None, min_side=32)
    crop = Crop(height_scale=0.1, width_scale=0.1)
    assert read_window(path, form, crop=crop).inputs["rgb"].shape == (1, 3, 1, 32, 32)


def test_bytes_of_pixels_are_what_floats_are_made_of():
    given = {p: read_window(NASA, transform(), pixels=p) for p in ("uint8", "float32")}
    assert torch.equal(
        given["uint8"].inputs["rgb"].float() / 127.5 - 1, given["float32"].inputs["rgb"]
    )
    assert given["uint8"].inputs["spectrogram"].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height_scale": 0}, "height_scale must be positive, got 0"),
        ({"width_scale": math.inf}, "width_scale must be positive, got inf"),
        ({"top": 1.5}, r"top must be in \[0, 1\], got 1.5"),
        ({"left": math.nan}, r"left must be in \[0, 1\], got nan"),
    ],
)
def test_bad_crops_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Crop(**options)


# Short clips.


def test_a_short_clip_repeats_its_last_frame_and_adds_silence(half_second):
    form = transform(8, 80)
    clip = read_window(half_second, form)
    assert levels(clip) == [10, 20, 30, 40, 50, 50, 50, 50]
    silence = (torch.full((29, 32), FLOOR).log() - form.mean) / form.std
    assert torch.equal(clip.inputs["spectrogram"][0, 51:], silence)


def test_a_short_clip_loops(half_second):
    form = transform(8, 80, short="loop")
    clip = read_window(half_second, form)
    assert levels(clip) == [10, 20, 30, 40, 50, 10, 20, 30]
    energy = bands(clip, form)[0]
    # Frame 50 begins the sound again. The last frames of a lap hear its end and its beginning.
    assert torch.equal(energy[50:], energy[:30])


def test_loops_of_a_segment_stay_in_it(half_second):
    form = transform(8, 80, short="loop")
    clip = read_window(half_second, form, 0.1, 0.3)
    assert levels(clip) == [20, 30] * 4
    energy = bands(clip, form)[0]
    assert torch.equal(energy[20:40], energy[:20])


def test_loop_changes_nothing_of_a_clip_that_is_long_enough():
    given = [load_clip(NASA, transform(short=short)).inputs for short in ("repeat", "loop")]
    assert all(torch.equal(given[0][m], given[1][m]) for m in given[0])


def test_circular_sound_begins_with_the_video_and_wraps(tmp_path):
    # A tone from 1 s on; 0.4 s of video and 1 s of sound in 2 s: at the end the sound wraps.
    path = write(tmp_path / "a.mkv", levels=[0] * 20, sound=sine(1000, 2.0, start=1.0))
    form = transform(4, 100, circular_sound=True, mean=0.0, std=1.0)
    clip = read_window(path, form, position=1)
    assert clip.starts == {"rgb": (1.6,), "spectrogram": (1.6,)}
    with av.open(str(path)) as container:
        whole = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    waveform = torch.from_numpy(whole.reshape(-1).astype(np.float32) / 32768)
    wrapped = waveform.roll(-25600)[: 99 * 160 + 400]
    assert torch.equal(clip.inputs["spectrogram"][0], log_mel(wrapped, n_mels=32))
    assert clip.lengths["spectrogram"] == form.n_tokens("spectrogram")
    plain = read_window(path, transform(4, 100), position=1)
    assert plain.starts["spectrogram"] == (1.0,)
    same = load_clip(path, form), load_clip(path, transform(4, 100, mean=0.0, std=1.0))
    assert torch.equal(*(clip.inputs["spectrogram"] for clip in same))


# Padding.


def test_lengths_count_the_tokens_before_the_end(half_second):
    form = transform(8, 80)
    clip = read_window(half_second, form)
    # 5 of 8 frames touch 3 of 4 tubelets of 4 patches; 50 of 80 spectra are 5 of 8 times 2 patches.
    assert clip.lengths["rgb"].tolist() == [1 + 3 * 4]
    assert clip.lengths["spectrogram"].tolist() == [1 + 5 * 2]
    assert clip.lengths["rgb"].dtype == torch.int32
    looped = read_window(half_second, transform(8, 80, short="loop"))
    assert looped.lengths["rgb"].tolist() == [1 + 4 * 4]
    assert read_window(half_second, transform(8, 80, patch_size=None)).lengths == {}


def test_a_window_behind_the_end_of_the_sound_has_no_sound(tmp_path):
    path = write(tmp_path / "a.mkv", levels=[0] * 60, sound=sine(1000, 1.0))
    clip = read_window(path, transform(), position=1)
    assert clip.lengths["spectrogram"].tolist() == [0]
    assert clip.lengths["rgb"].tolist() == [1 + 2 * 4]


def test_lengths_of_the_views_of_a_clip(tmp_path):
    path = write(tmp_path / "a.mkv", levels=[0] * 60, sound=sine(1000, 3.5))
    clip = load_clip(path, transform(4, 100), 3)
    # Windows of sound begin at 0, 2.5 and 5 s.
    assert clip.lengths["spectrogram"].tolist() == [21, 21, 0]


def test_a_model_takes_the_lengths():
    model = create_model("mbt_tiny").eval()
    form = ClipTransform.from_config(model.config)
    clip = read_window(NASA, form)
    for modality, length in clip.lengths.items():
        assert length.tolist() == [model.config.n_tokens(modality)]
    with torch.inference_mode():
        assert torch.equal(model(dict(clip.inputs), clip.lengths), model(dict(clip.inputs)))


@pytest.mark.parametrize(
    "changes",
    [{"classifier": "gap_per_modality"}, {"classifier": "gap"}, {"n_sampled_frames": 1}],
    ids=str,
)
def test_a_model_without_cls_or_with_sampled_frames_takes_the_lengths(mixed, changes):
    model = create_model("mbt_tiny", **changes).eval()
    form = ClipTransform.from_config(model.config)
    for modality in form.shapes:
        assert form.n_tokens(modality) == model.config.n_tokens(modality)
    clips = [read_window(path, form) for path in mixed]
    for mask_padding in (False, True):
        inputs, lengths = collate(clips, mask_padding=mask_padding)
        assert lengths["spectrogram"][1] == 0
        with torch.inference_mode():
            assert model(inputs, lengths).isfinite().all()


def test_lengths_count_sampled_frames_only():
    form = ClipTransform((8, 16, 16), None, patch_size={"rgb": (1, 8, 8)}, sampled_frames=(1, 4, 6))
    # Frame 4 is real from 5 frames on; of a single frame the sampled one is a repetition.
    counts = [form.n_tokens("rgb", frames) for frames in (0, 1, 2, 4, 5, 8)]
    assert counts == [0, 5, 5, 5, 9, 13]
    assert form.n_tokens("rgb") == 13


# Batches.


@pytest.fixture
def mixed(tmp_path):
    """Files with both modalities, with video only, with sound only, and a short one."""
    return [
        NASA,
        write(tmp_path / "mute.mkv", levels=[1] * 20),
        write(tmp_path / "blind.wav", sound=sine(440, 2)),
        write(tmp_path / "short.mkv", levels=[1] * 2, sound=sine(440, 0.2)),
    ]


def test_a_batch_of_clips_that_lack_a_modality(mixed):
    form = transform()
    clips = [read_window(path, form, pixels="uint8") for path in mixed]
    inputs, lengths = collate(clips)
    assert inputs["rgb"].shape == (4, 3, 4, 16, 16)
    assert inputs["rgb"].dtype == torch.uint8
    assert inputs["spectrogram"].shape == (4, 100, 32)
    assert lengths["rgb"].tolist() == [9, 9, 0, 5]
    assert lengths["spectrogram"].tolist() == [21, 0, 21, 5]
    assert torch.equal(inputs["rgb"][0], clips[0].inputs["rgb"][0])
    assert not inputs["rgb"][2].any()
    assert not inputs["spectrogram"][1].any()
    _, present = collate(clips, mask_padding=False)
    assert present["rgb"].tolist() == [9, 9, 0, 9]
    assert present["spectrogram"].tolist() == [21, 0, 21, 21]


def test_a_batch_without_padding_has_no_lengths(mixed):
    clips = [read_window(NASA, transform(), position=p) for p in (0, 0.5, 1)]
    assert collate(clips)[1] is None
    blind = [read_window(mixed[2], transform()) for _ in range(2)]
    inputs, lengths = collate(blind)  # a modality that all lack is there, for models on other ranks
    assert list(inputs) == ["rgb", "spectrogram"]
    assert lengths["rgb"].tolist() == [0, 0]


def test_a_mixed_batch_through_a_model(mixed):
    model = create_model("mbt_tiny").eval()
    form = ClipTransform.from_config(model.config)
    clips = [read_window(path, form) for path in mixed]
    with torch.inference_mode():
        logits = model(*collate(clips))
    assert logits.isfinite().all()


def test_clips_that_make_no_batch(mixed):
    clip = read_window(NASA, transform())
    unknown = read_window(mixed[1], transform(patch_size=None))
    for clips, message in (
        ([], "clips must hold at least one clip"),
        ([load_clip(NASA, transform())], "clips must have one view each, got 4"),
        ([clip, read_window(NASA, transform(time=80))], "clips must share one transform"),
        ([unknown], "the transform must have a patch_size"),
    ):
        with pytest.raises(ValueError, match=message):
            collate(clips)


# Options of the transform.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short": "mirror"}, "short must be one of repeat, loop, got 'mirror'"),
        ({"patch_size": {"rgb": (3, 8, 8)}}, r"patch_size\['rgb'\] must divide"),
        ({"patch_size": {"rgb": (8, 8)}}, r"patch_size\['rgb'\] must divide"),
        ({"patch_size": {"depth": (1,)}}, "patch_size must be of a modality with a size"),
        ({"n_cls": 2}, "n_cls must be 0 or 1, got 2"),
        (
            {"sampled_frames": (1, 4)},
            r"sampled_frames must be of the 4 frames of rgb, got \(1, 4\)",
        ),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        transform(**options)


def test_a_transform_is_a_value():
    config = MBTConfig()
    first, second = ClipTransform.from_config(config), ClipTransform.from_config(config)
    assert first == second
    assert hash(first) == hash(second)
    assert first.n_tokens("rgb") == config.n_tokens("rgb")
    assert first.n_tokens("spectrogram") == config.n_tokens("spectrogram")
