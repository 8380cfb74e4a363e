"""AV-Digits: its clips are what their manifest says, and models learn from them."""

import json
import math
import re
import tarfile
import wave

import numpy as np
import pytest
import torch

from examples.av_digits import data, figures, record, systems, table
from examples.av_digits.data import CELL, FRAMES, HEADS, SIDE, label_names, make_example, write_task
from examples.av_digits.digits import RATE, read_digits
from examples.av_digits.experiment import make
from examples.av_digits.figures import BY_FLOPS, BY_LAYER
from examples.av_digits.plan import MODELS, TOWERS, Run, stages
from examples.av_digits.scores import Scorer
from mbt_fast import MBT
from mbt_fast.data import ClipTransform, Manifest, read_window
from mbt_fast.train import TrainConfig, start

SPEAKERS = "abcdef"
RECORDINGS = 12  # of a digit by a speaker
ROWS, COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477)  # Hz, of a telephone's keys
KEYS = "123456789*0#"


def dial(digit, speaker, number):
    """A key's two tones, int16 at 8 kHz: a speaker has a pitch, a recording a length."""
    row, column = divmod(KEYS.index(str(digit)), len(COLUMNS))
    time = torch.arange(2400 + 100 * number) / 8000
    pitch = 1 + 0.01 * SPEAKERS.index(speaker)
    tones = [(2 * math.pi * pitch * f * time).sin() for f in (ROWS[row], COLUMNS[column])]
    return (8000 * sum(tones)).short()


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Tones in place of speech, in files that are called as those of the real data set."""
    folder = tmp_path_factory.mktemp("speech") / "recordings"
    folder.mkdir()
    for speaker in SPEAKERS:
        for digit in range(10):
            for number in range(RECORDINGS):
                with wave.open(str(folder / f"{digit}_{speaker}_{number}.wav"), "wb") as file:
                    file.setparams((1, 2, 8000, 0, "NONE", ""))
                    file.writeframes(dial(digit, speaker, number).numpy().tobytes())
    return folder


@pytest.fixture(scope="module")
def digits(speech):
    for package in ("av", "scipy", "sklearn"):
        pytest.importorskip(package)
    return read_digits(speech)


def test_no_recording_or_image_is_in_two_splits(digits):
    counts = {split: [len(words) for words in made.words] for split, made in digits.items()}
    assert counts == {"train": [8] * 10, "val": [20] * 10, "seen": [20] * 10, "unseen": [24] * 10}
    images = {
        split: {tuple(image.flatten().tolist()) for of_digit in made.images for image in of_digit}
        for split, made in digits.items()
    }
    assert images["seen"] == images["unseen"]
    assert not images["train"] & images["seen"]
    assert not images["val"] & (images["train"] | images["seen"])
    assert sum(map(len, images.values())) - len(images["seen"]) == 1797


def test_an_archive_holds_the_same_digits_as_its_folder(speech, digits, tmp_path):
    with tarfile.open(tmp_path / "speech.tar.gz", "w:gz") as archive:
        archive.add(speech, "recordings")
    found = read_digits(tmp_path / "speech.tar.gz")
    for split, made in digits.items():
        for mine, theirs in zip(made.words, found[split].words, strict=True):
            assert all(map(np.array_equal, mine, theirs))


def test_a_folder_without_recordings_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="must hold files such as"):
        read_digits(tmp_path)


def test_digits_are_where_their_clip_says(digits, monkeypatch):
    monkeypatch.setattr(data, "PIXEL_NOISE", 0.0)
    monkeypatch.setattr(data, "SNR", (60.0, 60.0))
    source = torch.Generator().manual_seed(0)
    for training in (False, True):
        for _ in range(20):
            made = make_example(digits["train"], "sum", training, source)
            assert made.pictures.shape == (FRAMES, SIDE, SIDE)
            top, left = (CELL * place for place in divmod(made.quarter, 2))
            outside = made.pictures.clone()
            outside[:, top : top + CELL, left : left + CELL] = 0
            assert made.pictures.max() > outside.max() == round(255 * data.GREY)
            begin, end = (round(time * RATE) for time in made.interval)
            energy = made.sound.square()
            assert energy[begin:end].sum() > 0.99 * energy.sum()


def test_both_digits_of_a_clip_are_the_same_or_independent(digits):
    source = torch.Generator().manual_seed(0)
    for task, share in (("digit", 1.0), ("sum", 0.1)):
        made = [make_example(digits["val"], task, False, source) for _ in range(400)]
        equal = sum(one.shown == one.spoken for one in made) / len(made)
        assert abs(equal - share) <= 5 * math.sqrt(share * (1 - share) / len(made))


def test_clips_are_the_same_each_time_and_read_as_they_were_written(digits, tmp_path):
    for folder in ("first", "second"):
        list(write_task(digits, "sum", tmp_path / folder, {"val": 6, "train": 2}))
    files = sorted(path.relative_to(tmp_path / "first") for path in tmp_path.glob("first/**/*.*"))
    assert len(files) == 6 + 2 + 3
    for file in files:
        first, second = ((tmp_path / folder / file).read_bytes() for folder in ("first", "second"))
        assert first == second
    manifest = Manifest.read(tmp_path / "first" / "sum" / "val.csv")
    sums, spoken, shown = manifest.targets(label_names("sum"), "multitask").T
    assert sums.tolist() == ((spoken + shown) % 10).tolist()
    assert sums.tolist() == manifest.targets([str(d) for d in range(10)], "single").tolist()
    place = data.TASKS.index("sum") * len(data.SPLITS) + data.SPLITS.index("val")
    made = make_example(
        digits["val"], "sum", False, torch.Generator().manual_seed(place * 10_000_000)
    )
    transform = ClipTransform((FRAMES, SIDE, SIDE), (64, 32), stride=8, min_side=SIDE)
    read = read_window(manifest[0].media, transform, pixels="uint8").inputs["rgb"][0, 0]
    assert (read.int() - made.pictures.int()).abs().max() <= 1


def test_every_run_of_the_plan_is_a_configuration(tmp_path):
    towers, models = stages(tuple(MODELS), (0, 1))
    assert {run.name for run in towers} == set(TOWERS)
    assert len(models) == 2 * len(MODELS)
    lengths = set()
    for run in (*towers, *models):
        config = TrainConfig.from_toml(*given(run, tmp_path, tmp_path / "runs"))
        lengths.add((run.task, config.train.steps, config.train.lr, config.train.batch_size))
        started = bool(config.init.towers or config.init.checkpoint)
        assert started == (run.task == "sum")
    assert len(lengths) == 2, "equal steps for all"
    assert set(table.WORDS) == set(MODELS)
    assert {name for names in BY_FLOPS.values() for name in names} <= set(MODELS)
    assert {name for names in BY_LAYER.values() for name in names} <= set(MODELS)


def test_every_model_starts_from_its_towers(tmp_path):
    clips, runs = tmp_path / "clips", tmp_path / "runs"
    towers, models = (
        [(run, TrainConfig.from_toml(*given(run, clips, runs))) for run in stage]
        for stage in stages(tuple(MODELS), (0,))
    )
    for run, config in towers:
        start.build(config, 10).save_pretrained(run.folder(runs))
    for run, config in models:
        model, used = start.build(config, 30), 0
        for modality in model.config.modalities:
            shared = model.config.share_encoder
            saved = MBT.from_pretrained(
                runs / "seed-0" / f"tower-{'shared' if shared else modality}"
            )
            for name, tensor in saved.state_dict().items():
                if f".{modality}." in name:
                    assert torch.equal(model.state_dict()[name], tensor), (run.name, name)
                    used += 1
        assert used, run.name


def given(run, clips, runs):
    """Recipe and overrides."""
    _, recipe, *overrides = run.arguments(clips, runs)
    return recipe, overrides


def row(name, seed, **scores):
    kind = "digit" if name.startswith("tower") else "sum"
    both = {split: {"both": {kind: v}, "loss": {kind: 2.3}} for split, v in scores.items()}
    return {"name": name, "seed": seed, "scores": both, "flops_per_clip": 2e6}


def test_the_table_says_what_was_missed():
    rows = [row(name, seed, seen=0.9, unseen=0.8) for name in table.TOWERS for seed in (0, 1)]
    rows += [row("bottleneck-2", seed, seen=0.75 - 0.1 * seed, unseen=0.6) for seed in (0, 1)]
    rows += [row("late", 0, seen=0.21, unseen=0.1), row("rgb", 0, seen=0.15, unseen=0.1)]
    seen, unseen, late, alone = table.verdicts(rows)
    assert "0.93, 0.80" in seen
    assert "met in 1 of 2" in seen
    assert "met in 2 of 2" in unseen
    assert "at most 21.0 %" in late
    assert "met in 1 of 2" in late
    assert "met in 2 of 2" in alone
    machine = {"device": "a machine", "torch": "2"}
    text = table.block({"runs": rows, "machine": machine}, ["plot"])
    assert "| late, a loss per modality | **21.0** (21.0) | **10.0** (10.0) | 2.30 | 2.0 |" in text


def test_models_are_compared_within_a_seed():
    rows = [row("bottleneck-2", seed, seen=0.8 + 0.1 * seed, unseen=0.5) for seed in (1, 0)]
    rows += [row("vanilla-2", seed, seen=0.7, unseen=0.5) for seed in (1, 2)]
    seen, unseen = table.comparison(rows)
    assert "from layer 2 **+20.0** (+20.0)" in seen
    assert "from layer 2 **+0.0** (+0.0)" in unseen


def test_figures_are_drawn_of_the_runs_that_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    rows = [row(name, 0, seen=0.9, unseen=0.8) for name in (*table.TOWERS, "late", "bottleneck-2")]
    for made in rows:
        made["model"] = {"fusion_layer": 2}
    markup = figures.write_figures(rows, tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"layer.svg", "layer-dark.svg", "flops.svg", "flops-dark.svg"}
    assert all(file in "".join(markup) for file in files)
    drawn = (tmp_path / "flops.svg").read_text()
    assert "bottleneck, B = 4" in drawn
    assert "vanilla" not in drawn


def test_the_readme_is_made_of_the_record():
    readme = record.README.read_text()
    assert table.block(json.loads(record.RECORD.read_text()), []) in readme
    files = re.findall(r'"(\S+/curves\S*\.svg)"', readme)
    measured = systems.block(json.loads(systems.RECORD.read_text()), files[::-1])
    assert measured in readme


@pytest.mark.slow
def test_towers_learn_digits_and_a_fused_model_starts_from_them(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sizes = {"train": 640, "val": 64, "seen": 128, "unseen": 64}
    for task in data.TASKS:
        list(write_task(digits, task, tmp_path / "clips", sizes, jobs=1))
    scorer, runs = Scorer(tmp_path / "clips"), tmp_path / "runs"
    short = ("train.steps=150", "train.warmup_steps=15")
    for name in ("tower-rgb", "tower-spectrogram"):
        make(Run(name, "digit", 0, TOWERS[name]), tmp_path / "clips", runs, scorer, short)
    fused = Run("bottleneck-2", "sum", 0, MODELS["bottleneck-2"])
    make(fused, tmp_path / "clips", runs, scorer, ("train.steps=20", "train.warmup_steps=2"))
    found = {row["name"]: row["scores"]["seen"]["both"] for row in record.gather(runs)["runs"]}
    assert list(found) == ["tower-rgb", "tower-spectrogram", "bottleneck-2"]
    assert min(found[name]["digit"] for name in ("tower-rgb", "tower-spectrogram")) > 0.3
    assert set(found["bottleneck-2"]) == set(HEADS)
