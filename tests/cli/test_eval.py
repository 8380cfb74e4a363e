"""``mbt-fast eval`` from a run and a manifest to records."""

import csv
import hashlib
import json
from dataclasses import asdict

import pytest
import torch

import mbt_fast
from mbt_fast.cli.main import main
from mbt_fast.data import ClipTransform, Manifest
from mbt_fast.data.synthetic import SyntheticSet, write_synthetic
from mbt_fast.train import TrainConfig, train
from mbt_fast.train.evaluate import evaluate

N, SILENT, BROKEN = 10, 2, 1
NAMES = ["tone-0", "tone-1", "tone-2"]
PAIRS = ["verb:cut", "verb:wash", "noun:cup"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    made = SyntheticSet(N, classes=3, seconds=1.0, val=0.0, broken=BROKEN / N, silent=SILENT / N)
    list(write_synthetic(folder, made))
    return folder


@pytest.fixture(scope="module")
def manifest(folder):
    return folder / "train.csv"


@pytest.fixture
def model():
    model = mbt_fast.create_model("mbt_tiny", num_classes=len(NAMES))
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.fixture
def transform(model):
    return ClipTransform.from_config(model.config, stride=3.0, mean=-6.0)


def write_run(folder, model, transform, task="single", names=NAMES):
    """A run of three steps, as training leaves it."""
    checkpoint = folder / "checkpoints" / "step-00000003"
    model.save_pretrained(checkpoint)
    state = {
        "step": 3,
        "epoch": 1,
        "config": {"train.task": task, "train.dtype": "float32", "data.errors": "strict"},
        "front_end": asdict(transform),
        "labels": names,
    }
    (checkpoint / "state.json").write_text(json.dumps(state))
    for pointer in ("latest", "best"):
        (folder / pointer).write_text("checkpoints/step-00000003\n")
    return folder


@pytest.fixture
def run(model, transform, tmp_path):
    return write_run(tmp_path / "run", model, transform)


def evaluated(*arguments):
    common = ("--device", "cpu", "--workers", "0")
    return main(["eval", *map(str, (*arguments, *common))])


def refused(capsys, *arguments):
    """The one line with which a command ends."""
    assert evaluated(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_run_is_scored_by_its_own_front_end(run, manifest, model, transform, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert evaluated(run, manifest, "--views", 3, "--json", out) == 0
    report = json.loads(out.read_text())
    expected = evaluate(
        model, Manifest.read(manifest), transform, task="single", names=NAMES, views=3
    )
    (record,) = report["records"]
    assert record.items() >= expected.items()
    assert record["n"] == N - BROKEN
    assert list(record["per_class"]) == NAMES
    assert report["step"] == 3
    assert report["checkpoint"].endswith("step-00000003")
    assert report["task"] == "single"
    assert report["front_end"]["mean"] == -6.0
    assert report["manifest_hash"] == Manifest.read(manifest).hash
    text = "".join(f"{name}\n" for name in NAMES)
    assert report["label_hash"] == hashlib.sha256(text.encode()).hexdigest()
    shown = capsys.readouterr().out
    assert f"{record['top1']:.4f}" in shown
    assert f"spectrogram is absent from {SILENT} of {N - BROKEN} clips" in shown
    assert f"left out, because they cannot be read: {BROKEN}" in shown


RECIPE = """
[model]
name = "mbt_tiny"
[data]
train = "train.csv"
val = "train.csv"
labels = "labels.txt"
mean = -6.0
workers = 0
broken_limit = 0.5
[train]
task = "single"
steps = 2
batch_size = 4
lr = 0.1
ema = 0.5
[eval]
views = 3
"""


def test_a_run_gets_the_score_that_its_log_has(folder, manifest, tmp_path):
    (folder / "recipe.toml").write_text(RECIPE)
    run, out = tmp_path / "run", tmp_path / "out.json"
    train(TrainConfig.from_toml(folder / "recipe.toml"), run)
    logged = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert evaluated(run, manifest, "--views", 3, "--json", out) == 0
    (record,) = json.loads(out.read_text())["records"]
    assert logged["kind"] == "eval"
    assert {name: record[name] for name in record if name in logged} == {
        name: logged[name] for name in logged if name in record
    }
    assert {"top1", "top5", "n", "views", "broken", "absent"} <= logged.keys() & record.keys()


def test_the_best_checkpoint_can_be_scored(run, manifest):
    assert evaluated(run / "best", manifest, "--views", 1) == 0


def test_all_subsets_of_the_modalities(run, manifest, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert evaluated(run, manifest, "--modalities", "all", "--views", 1, "--json", out) == 0
    records = json.loads(out.read_text())["records"]
    expected = [["rgb"], ["spectrogram"], ["rgb", "spectrogram"]]
    assert [record["modalities"] for record in records] == expected
    assert [record["without"] for record in records] == [0, SILENT, 0]
    assert "rgb + spectrogram" in capsys.readouterr().out


def test_a_subset_that_no_clip_has_leaves_the_scores_of_the_others(run, tmp_path, capsys):
    list(write_synthetic(tmp_path, SyntheticSet(2, classes=2, seconds=1.0, val=0.0, silent=0.9)))
    out, silent = tmp_path / "out.json", tmp_path / "train.csv"
    assert evaluated(run, silent, "--modalities", "all", "--views", 1, "--json", out) == 0
    records = json.loads(out.read_text())["records"]
    assert [record["n"] for record in records] == [2, 0, 2]
    assert records[0]["top1"] is not None
    assert records[1]["top1"] is None
    line = refused(capsys, run, silent, "--modalities", "spectrogram")
    assert "no clip could be scored from spectrogram: none has such a modality" in line


def test_one_modality(run, manifest, tmp_path):
    out = tmp_path / "out.json"
    assert evaluated(run, manifest, "--modalities", "spectrogram", "--json", out) == 0
    (record,) = json.loads(out.read_text())["records"]
    assert record["modalities"] == ["spectrogram"]
    assert record["n"] == N - BROKEN - SILENT


def test_constant_predictions_raise_an_alarm(model, transform, manifest, tmp_path, capsys):
    torch.nn.init.zeros_(model.head.weight)
    run = write_run(tmp_path / "run", model, transform)
    assert evaluated(run, manifest, "--views", 1) == 0
    assert (
        "alarm: all clips get the same logits from rgb and spectrogram" in capsys.readouterr().out
    )


def test_weights_without_a_run_need_labels_and_a_task(model, manifest, folder, tmp_path, capsys):
    weights = tmp_path / "weights"
    model.save_pretrained(weights)
    assert "labels must be given" in refused(capsys, weights, manifest)
    labels = ("--labels", folder / "labels.txt")
    assert "task must be given" in refused(capsys, weights, manifest, *labels)
    out = tmp_path / "out.json"
    options = (*labels, "--task", "single", "--stride", 3, "--spec-mean", -6, "--json", out)
    assert evaluated(weights, manifest, *options) == 0
    assert json.loads(out.read_text())["front_end"]["stride"] == 3


# Epic-Kitchens.


@pytest.fixture
def epic(model, transform, tmp_path):
    return write_run(tmp_path / "epic", model, transform, "verb_noun", PAIRS)


def write_pairs(folder, name, **columns):
    with (folder / name).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "id", *columns])
        for path in sorted(folder.glob("clips/*")):
            rows.writerow([path, f"P01_{path.stem}", *columns.values()])
    return folder / name


def test_the_result_format_of_epic_kitchens(epic, folder, tmp_path):
    manifest, out = write_pairs(folder, "e.csv", verb="cut", noun="cup"), tmp_path / "out.pt"
    report = tmp_path / "out.json"
    assert evaluated(epic, manifest, "--submission", out, "--json", report, "--views", 1) == 0
    results = torch.load(out)
    assert len(results) == N - BROKEN
    assert results[0]["narration_id"].startswith("P01_0")
    assert [len(results[0][name]) for name in ("verb_output", "noun_output")] == [2, 1]
    (record,) = json.loads(report.read_text())["records"]
    verbs = [result["verb_output"][0] > result["verb_output"][1] for result in results]
    assert record["action"] == pytest.approx(sum(verbs) / len(verbs))


def test_a_test_set_without_labels_is_submitted_unscored(epic, folder, tmp_path, capsys):
    manifest, out = write_pairs(folder, "test.csv"), tmp_path / "out.pt"
    assert "needs the columns verb and noun" in refused(capsys, epic, manifest)
    assert evaluated(epic, manifest, "--submission", out, "--views", 1) == 0
    assert "not scored" in capsys.readouterr().out
    assert len(torch.load(out)) == N - BROKEN


# Several heads.


def test_labels_that_are_given_keep_the_heads_of_the_run(
    model, transform, folder, tmp_path, capsys
):
    names = ["sum:even", "sum:odd", "shown:1"]
    heads = write_run(tmp_path / "heads", model, transform, "multitask", names)
    manifest = write_pairs(folder, "h.csv", **{"labels.sum": "odd", "labels.shown": "one"})
    labels, out = tmp_path / "labels.txt", tmp_path / "out.json"
    labels.write_text("sum:even\nsum:odd\nshown:one\n")
    options = ("--labels", labels, "--views", 1)
    assert evaluated(heads, manifest, *options, "--json", out) == 0
    (record,) = json.loads(out.read_text())["records"]
    assert record["top1/shown"] == 1
    assert record["top1"] == (record["top1/sum"] + 1) / 2
    labels.write_text("sum:odd\nshown:one\nshown:two\n")
    message = "labels must name heads of [2, 1] classes as in the run, got [1, 2]"
    assert message in refused(capsys, heads, manifest, *options)


# Input that cannot be used.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--views", "0"), "--views must be at least 1, got 0"),
        (("--batch-size", "0"), "--batch-size must be at least 1"),
        (("--modalities", "rgb,depth"), "--modalities must be all or some of rgb, spectrogram"),
        (("--backend", "fast"), "backend must be one of"),
        (("--json", "/nowhere/out.json"), "output must be in a folder that exists"),
        (("--submission", "out.pt"), "--submission must go with task 'verb_noun'"),
        (("--task", "multilabel"), "task must be that of the run, 'single'"),
        (("--spec-std", "0"), "std must be positive"),
    ],
)
def test_bad_options_are_one_line(run, manifest, capsys, options, message):
    assert message in refused(capsys, run, manifest, *options)


def test_a_manifest_that_names_other_classes_is_refused(run, folder, capsys):
    path = folder / "other.csv"
    path.write_text("path,labels\nclips/00000.mp4,tone-9\n")
    assert "must name a class, got 'tone-9'" in refused(capsys, run, path)


def test_a_set_of_broken_clips_says_why(run, folder, capsys):
    path = folder / "missing.csv"
    path.write_text("path,labels\nclips/missing.mp4,tone-1\n")
    line = refused(capsys, run, path)
    assert "no clip could be scored from rgb and spectrogram" in line
    assert "no such file" in line


def test_a_state_that_is_not_of_a_run_is_refused(run, manifest, capsys):
    (run / "checkpoints" / "step-00000003" / "state.json").write_text('{"step": 3}')
    assert "state.json is not that of a run" in refused(capsys, run, manifest)
