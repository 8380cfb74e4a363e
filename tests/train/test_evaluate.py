"""Scores of a model on media files: every clip once, and nothing lost."""

import csv
import json
import wave

import pytest
import torch
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from mbt_fast import create_model
from mbt_fast.data import ClipTransform, load_clip
from mbt_fast.data.manifest import Manifest
from mbt_fast.data.synthetic import SyntheticSet, write_synthetic
from mbt_fast.errors import InputError, RunError
from mbt_fast.train.evaluate import evaluate, per_class, score, summary
from mbt_fast.train.predictions import predict

BOTH = ("rgb", "spectrogram")
N, BROKEN, SILENT = 13, 1, 3
NAMES = [*"abcd", "never", "nor", "neither"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips of 1 s: one is broken, three are silent, and the last has sound alone."""
    folder = tmp_path_factory.mktemp("clips")
    made = SyntheticSet(clips=N - 1, classes=4, seconds=1.0, val=0.0, broken=1 / 12, silent=3 / 12)
    kinds = [kind for _, kind in write_synthetic(folder, made)]
    assert (kinds.count("broken"), kinds.count("silent")) == (BROKEN, SILENT)
    with wave.open(str(folder / "clips" / "sound.wav"), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes(torch.randint(-2000, 2000, (16000,), dtype=torch.int16).numpy().tobytes())
    return folder


def write_manifest(folder, name, **columns):
    """A manifest with a row for each clip; the order is not that of their names."""
    paths = sorted(folder.glob("clips/*.*"), key=lambda path: path.stem[::-1])
    with (folder / name).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "id", *columns])
        for index, path in enumerate(paths):
            rows.writerow([path, path.stem, *(make(index) for make in columns.values())])
    return Manifest.read(folder / name)


@pytest.fixture(scope="module")
def single(folder):
    return write_manifest(folder, "single.csv", labels=lambda i: "abcd"[i % 4])


@pytest.fixture(scope="module")
def multilabel(folder):
    return write_manifest(folder, "multi.csv", labels=lambda i: "|".join("abcd"[: 1 + i % 4]))


@pytest.fixture
def model():
    model = create_model("mbt_tiny", num_classes=len(NAMES))
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.fixture
def transform(model):
    return ClipTransform.from_config(model.config)


def run(model, manifest, transform, task="single", **options):
    return evaluate(model, manifest, transform, task=task, names=NAMES, **options)


def one_by_one(model, manifest, transform, n_views=4, modalities=BOTH):
    """Rows and logits of the clips that can be predicted, each on its own."""
    rows, logits = [], []
    model.eval()
    for row, entry in enumerate(manifest):
        try:
            clip = load_clip(entry.path, transform, n_views)
        except InputError:
            continue
        inputs = {m: x for m, x in clip.inputs.items() if m in modalities}
        if inputs:
            rows.append(row)
            with torch.no_grad():
                logits.append(model(inputs).mean(0))
    return rows, torch.stack(logits)


def test_scores_are_those_of_each_clip_read_alone(model, single, transform):
    rows, logits = one_by_one(model, single, transform)
    result = run(model, single, transform, batch_size=8)
    labels = single.targets(NAMES, "single")[rows]
    for k, name in ((1, "top1"), (5, "top5")):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=range(len(NAMES)))
        assert result[name] == pytest.approx(expected)
    assert result["n"] == len(rows) == N - BROKEN
    assert result["views"] == 4
    assert result["absent"] == {"rgb": 1, "spectrogram": SILENT}
    assert result["modalities"] == list(BOTH)
    assert not result["constant"]
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 20, 64])
def test_any_batch_size_gives_the_same_logits(model, single, transform, batch_size):
    rows, logits = one_by_one(model, single, transform)
    options = {"subsets": [BOTH], "batch_size": batch_size}
    (found,) = predict(model, single, transform, **options)
    assert found.rows.tolist() == rows
    torch.testing.assert_close(found.logits, logits)


def test_worker_processes_give_the_same_logits(model, single, transform):
    (alone,) = predict(model, single, transform, subsets=[BOTH])
    (shared,) = predict(model, single, transform, subsets=[BOTH], workers=2)
    assert torch.equal(alone.rows, shared.rows)
    assert torch.equal(alone.logits, shared.logits)
    assert alone.broken == shared.broken


def test_ranks_share_the_clips_without_rest(model, single, transform):
    (whole,) = predict(model, single, transform, subsets=[BOTH], batch_size=4)
    parts = [
        predict(model, single, transform, subsets=[BOTH], batch_size=4, rank=rank, world=3)[0]
        for rank in range(3)
    ]
    rows = torch.cat([part.rows for part in parts])
    assert rows.sort().values.tolist() == whole.rows.tolist()
    logits = torch.cat([part.logits for part in parts])[rows.argsort()]
    torch.testing.assert_close(logits, whole.logits)


def test_map_is_that_of_scikit_learn(model, multilabel, transform):
    rows, logits = one_by_one(model, multilabel, transform)
    result = run(model, multilabel, transform, "multilabel")
    targets = multilabel.targets(NAMES, "multilabel")[rows]
    assert targets.any(0).tolist() == [True] * 4 + [False] * 3
    assert result["mAP"] == pytest.approx(average_precision_score(targets[:, :4], logits[:, :4]))
    assert result["skipped"] == 3


def test_actions_of_verbs_and_nouns(model, folder, transform):
    names = ["verb:cut", "verb:wash", *(f"noun:{name}" for name in "abcde")]
    manifest = write_manifest(
        folder, "pairs.csv", verb=lambda i: ("cut", "wash")[i % 2], noun=lambda i: "abc"[i % 3]
    )
    rows, logits = one_by_one(model, manifest, transform)
    result = evaluate(model, manifest, transform, task="verb_noun", names=names)
    verb, noun = logits[:, :2].argmax(1), logits[:, 2:].argmax(1)
    right = (torch.stack([verb, noun], 1) == manifest.targets(names, "verb_noun")[rows]).all(1)
    assert result["action"] == pytest.approx(right.double().mean().item())
    assert {"verb", "noun", "action_top5"} <= set(result)


def test_top1_of_every_head(model, folder, transform):
    names = ["parity:even", "parity:odd", *(f"letter:{name}" for name in "abcde")]
    labels = {
        "labels.parity": lambda i: ("even", "odd")[i % 2],
        "labels.letter": lambda i: "abc"[i % 3],
    }
    manifest = write_manifest(folder, "heads.csv", **labels)
    rows, logits = one_by_one(model, manifest, transform)
    result = evaluate(model, manifest, transform, task="multitask", names=names)
    predicted = torch.stack([logits[:, :2].argmax(1), logits[:, 2:].argmax(1)], 1)
    right = (predicted == manifest.targets(names, "multitask")[rows]).double().mean(0).tolist()
    assert [result["top1/parity"], result["top1/letter"]] == pytest.approx(right)
    assert result["top1"] == pytest.approx(sum(right) / 2)


@pytest.mark.parametrize("batches", [[[0, 1], [1, 2]], [[0, 1]]])
def test_a_clip_that_is_read_twice_or_never_is_noticed(
    model, single, transform, batches, monkeypatch
):
    monkeypatch.setattr("mbt_fast.train.predictions.BatchSampler", lambda *_, **__: batches)
    with pytest.raises(RuntimeError, match=f"each of {N} clips must be read once, got"):
        predict(model, single, transform, subsets=[BOTH])


# Modalities.


def test_subsets_of_the_modalities_from_one_reading(model, single, transform):
    subsets = [("rgb",), ("spectrogram",), BOTH]
    found = predict(model, single, transform, subsets=subsets, batch_size=8)
    for subset, predictions in zip(subsets, found, strict=True):
        rows, logits = one_by_one(model, single, transform, modalities=subset)
        assert predictions.modalities == subset
        assert predictions.rows.tolist() == rows
        torch.testing.assert_close(predictions.logits, logits)
    assert [len(predictions.without) for predictions in found] == [1, SILENT, 0]
    assert found[0].absent == {"rgb": 0}


def test_clips_without_the_modality_are_counted(model, single, transform):
    result = run(model, single, transform, modalities=["spectrogram"])
    assert result["without"] == SILENT
    assert result["n"] == N - BROKEN - SILENT
    assert result["modalities"] == ["spectrogram"]


# What goes wrong.


def test_broken_clips_are_left_out_and_listed(model, single, transform):
    broken = run(model, single, transform)["broken"]
    assert len(broken) == BROKEN
    entry = next(entry for entry in single if entry.id == broken[0]["id"])
    assert entry.path in broken[0]["error"]


def test_a_set_of_broken_clips_has_no_score(model, folder, transform):
    path = folder / "nothing.csv"
    path.write_text(f"path,labels\n{folder}/missing.mp4,a\n")
    for task, name in (("single", "top1"), ("multilabel", "mAP")):
        result = run(model, Manifest.read(path), transform, task)
        assert result["n"] == 0
        assert result[name] is None
        assert not result["constant"]


def test_more_broken_clips_than_the_limit_are_refused_with_their_errors(model, single, transform):
    options = {"task": "single", "names": NAMES}
    share = BROKEN / N
    assert evaluate(model, single, transform, broken_limit=share, **options)["n"] == N - BROKEN
    with pytest.raises(RunError, match=f"at most 0, and {BROKEN} of {N} in .* cannot be read: "):
        evaluate(model, single, transform, broken_limit=0.0, **options)


@pytest.mark.parametrize("modalities", [["touch"], "rgb"])
def test_a_modality_that_the_model_does_not_take_is_refused(model, single, transform, modalities):
    with pytest.raises(ValueError, match="modalities must be of rgb, spectrogram, got '"):
        run(model, single, transform, modalities=modalities)


def test_constant_predictions_raise_an_alarm(model, single, transform):
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.normal_(model.head.bias)
    assert run(model, single, transform)["constant"]


def test_nan_names_the_clips(model, single, transform):
    torch.nn.init.constant_(model.embed["rgb"].proj.bias, float("nan"))
    with pytest.raises(RunError, match=r"got NaN for 11 clips: \d{5}, "):
        run(model, single, transform)


def test_an_unknown_label_is_refused_before_anything_is_read(model, single, transform):
    with pytest.raises(InputError, match="must name a class, got 'd'"):
        evaluate(model, single, transform, task="single", names=["a", "b", "c"])


def test_it_stops_when_it_is_asked_to(model, single, transform):
    asked = iter([False, True])
    model.train()
    assert run(model, single, transform, stop=lambda: next(asked)) is None
    assert model.training


# Precision and detail.


def test_autocast_is_used_and_logits_are_float32(model, single, transform):
    (exact,) = predict(model, single, transform, subsets=[BOTH])
    (rough,) = predict(model, single, transform, subsets=[BOTH], dtype=torch.bfloat16)
    assert rough.logits.dtype == torch.float32
    assert not torch.equal(rough.logits, exact.logits)
    assert (rough.logits - exact.logits).abs().max() < 0.1 * exact.logits.abs().max()


def test_each_class_has_its_score(model, single, multilabel, transform):
    for manifest, task in ((single, "single"), (multilabel, "multilabel")):
        (found,) = predict(model, manifest, transform, subsets=[BOTH])
        targets = manifest.targets(NAMES, task)
        values = per_class(found, targets, task, NAMES)
        assert list(values) == NAMES
        assert values["never"] is None
        known = [value for value in values.values() if value is not None]
        if task == "multilabel":
            mean = score(found, targets, task, NAMES)["mAP"]
            assert mean == pytest.approx(sum(known) / len(known))
        else:
            hits = found.logits.argmax(1) == targets[found.rows]
            share = hits[targets[found.rows] == 0].double().mean().item()
            assert values["a"] == pytest.approx(share)


def test_the_summary_is_plain_data(model, single, transform):
    (found,) = predict(model, single, transform, subsets=[BOTH])
    text = json.dumps(summary(found, single, 4), allow_nan=False)
    assert json.loads(text)["n"] == N - BROKEN
