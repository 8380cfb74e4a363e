"""The plan of a run: its configuration, its data, its cost, and what will wait."""

import sys
from dataclasses import replace

import pytest
import torch

from mbt_fast import flops
from mbt_fast.data.synthetic import SyntheticSet, write_synthetic
from mbt_fast.errors import InputError
from mbt_fast.train import optimizer, plan, rates
from mbt_fast.train.config import TrainConfig
from mbt_fast.train.parts import build_parts, read_data
from mbt_fast.train.rates import Learning, Reading, waiting_share

RECIPE = """
[model]
name = "mbt_tiny"
[data]
train = "train.csv"
val = "val.csv"
labels = "labels.txt"
workers = 0
[train]
task = "single"
epochs = 3
batch_size = 4
lr = 0.05
warmup_epochs = 0.5
device = "cpu"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten clips of two classes, two of them for validation, and a recipe for them."""
    folder = tmp_path_factory.mktemp("clips")
    list(write_synthetic(folder, SyntheticSet(clips=10, classes=2, seconds=1.0)))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def config_of(folder, *overrides):
    return TrainConfig.from_toml(folder / "recipe.toml", overrides)


def parts_of(folder, *overrides):
    config = config_of(folder, *overrides)
    data = read_data(config)
    return build_parts(config.with_num_classes(len(data.names)), data)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")
def test_configuration_is_shown_as_toml_with_the_origin_of_each_value(folder):
    import tomllib

    config = config_of(folder, "train.seed=3", 'data.val="a # b.csv"').with_num_classes(2)
    text = plan.resolved(config)
    origins = [line.rpartition("# ")[2] for line in text.splitlines() if " = " in line]
    assert origins == list(config.origins.values())
    assert {"recipe", "override", "default", "labels file"} == set(origins)
    assert tomllib.loads(text) == tomllib.loads(config.to_toml())


def test_plan_has_every_part(folder):
    text = "\n".join(plan.parts_of(config_of(folder), seconds=0.1))
    for word in ("steps:", "epochs:", "compute:", "memory:", "reading:", "learning:", "waits:"):
        assert f"\n{word}" in text


def test_recipe_without_manifests_is_shown_before_it_is_refused(tmp_path):
    found = plan.parts_of(TrainConfig.from_toml("vggsound"))
    assert 'task = "single"' in next(found)
    with pytest.raises(InputError, match=r"data\.train must name a manifest"):
        next(found)


def test_census_names_missing_files_and_classes_without_a_clip(folder, tmp_path):
    (tmp_path / "labels.txt").write_text("tone-0\ntone-1\nsilence\n")
    rows = (folder / "train.csv").read_text().splitlines()
    rows = [row.replace("clips/", f"{folder}/clips/") for row in rows]
    gone = [row.replace("00001.mp4", "gone.mp4") for row in rows]
    (tmp_path / "train.csv").write_text("\n".join(gone) + "\n")
    changes = (f"data.labels={tmp_path / 'labels.txt'}", f"data.train={tmp_path / 'train.csv'}")
    text = plan.census(read_data(config_of(folder, *changes)))
    line = next(line for line in text.splitlines() if line.startswith("train "))
    assert line.split() == ["train", "8", "3", "1", "1"]
    assert "train: no clip of silence" in text
    assert f"train: missing {folder}/clips/gone.mp4" in text


def test_steps_and_warm_up_are_counted(folder):
    assert plan.length(parts_of(folder, "train.batch_size=3")).splitlines() == [
        "steps:    6, of which 1 warm up",
        "epochs:   3 of 2 steps of 3 clips, 2 clips of each are left out",
    ]


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
def test_memory_of_the_optimizer_is_what_it_holds_after_a_step(folder, optimizer_name):
    parts = parts_of(folder, f"train.optimizer={optimizer_name}")
    held = plan.memory(parts)
    steps, _ = optimizer.build(parts.model, parts.config.train, parts.total_steps)
    for parameter in parts.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    steps.step()
    states = [value for state in steps.state.values() for value in state.values()]
    tensors = [value for value in states if torch.is_tensor(value) and value.ndim]
    assert held["optimizer"] == sum(t.numel() * t.element_size() for t in tensors)
    gradients = (parameter.grad for parameter in parts.model.parameters())
    assert held["gradients"] == sum(t.numel() * t.element_size() for t in gradients)


def test_memory_counts_averages_and_the_sum_of_virtual_devices(folder):
    plain, more = (
        plan.memory(parts_of(folder, *changes))
        for changes in ((), ("train.ema=0.9", "train.virtual_devices=2"))
    )
    assert more["gradients"] == 2 * plain["gradients"]
    assert more["average"] == plain["weights"]


def test_flops_are_in_closed_form_and_those_that_torch_counts(folder):
    parts = parts_of(folder)
    assert plan.training_flops(parts) == flops.training_flops(parts.model.config).total
    assert (
        plan.forward_flops(parts.model, parts.transform.shapes)
        == flops.forward_flops(parts.model.config).total
    )


def test_clip_that_cannot_be_read_is_counted(folder, tmp_path):
    rows = (folder / "train.csv").read_text().splitlines()
    rows = [row.replace("clips/", f"{folder}/clips/") for row in rows]
    rows[1] = rows[1].replace(".mp4", ".gone")
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    parts = parts_of(folder, f"data.train={tmp_path / 'train.csv'}")
    reading = rates.measure_reading(parts, 60)
    assert (reading.clips, reading.broken) == (8, 1)


def test_data_set_of_which_nothing_can_be_read_is_named(folder, tmp_path):
    rows = ["path,labels", *(f"gone-{index}.mp4,tone-{index % 2}" for index in range(8))]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    parts = parts_of(folder, f"data.train={tmp_path / 'train.csv'}")
    with pytest.raises(InputError, match=r"train\.csv: no clip can be read: .*gone-"):
        rates.measure_reading(parts, 60)


def test_step_is_made_with_as_many_clips_as_the_run_takes_at_a_time(folder):
    changes = {"train.micro_batch=2": 2, "train.virtual_devices=4": 1, "train.batch_size=8": 8}
    for change, at_a_time in changes.items():
        assert rates.measure_learning(parts_of(folder, change), 60).at_a_time == at_a_time
    assert rates.measure_learning(parts_of(folder), 0.0).at_a_time == 1


@pytest.mark.parametrize(
    ("seconds", "workers", "share"),
    [(0.1, 1, 0.9), (0.1, 0, 10 / 11), (0.01, 1, 0.0), (0.001, 1, 0.0)],
)
def test_model_waits_for_what_workers_are_slower_than_it(seconds, workers, share):
    learning = Learning(seconds=0.08, batch_size=8, at_a_time=8)  # 100 clips a second
    reading = Reading(seconds=seconds, clips=8, broken=0, workers=workers)
    assert waiting_share(reading, learning) == pytest.approx(share)


def test_verdict_says_who_waits_and_how_many_workers_would_do(folder, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    parts, learning = parts_of(folder), Learning(0.08, 8, 8)
    slow = Reading(seconds=0.1, clips=8, broken=1, workers=2)
    text = plan.speed(parts, slow, learning)
    assert "waits:    the model, 80% of the time; data.workers=10 would keep up" in text
    assert "1 more could not be read" in text
    fast = plan.speed(parts, replace(slow, seconds=0.01), learning)
    assert "waits:    the workers, 50% of the time; the model never waits for clips" in fast


def test_with_a_cache_the_model_waits_once(folder, monkeypatch):
    """8 clips are read at 20 a second, and 24 learned at 100 a second."""
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    fixed = ("augment.window=centre", "augment.crop=centre", "data.cache=cache")
    reading = Reading(seconds=0.1, clips=8, broken=0, workers=2)
    text = plan.speed(parts_of(folder, *fixed), reading, Learning(0.04, 4, 4))
    assert "waits:    the model, for 0.40 seconds until data.cache has all clips" in text
    assert "the run:  about 0.64 seconds" in text
