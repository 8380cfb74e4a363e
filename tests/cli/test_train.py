"""``mbt-fast train`` from the command line, and its run as a checkpoint for other commands."""

import json
import shutil
import signal

import pytest
import torch

from mbt_fast import MBT, create_model
from mbt_fast.checkpoint import load_pretrained
from mbt_fast.checkpoint.runs import read_state, resolve_run
from mbt_fast.cli.main import main
from mbt_fast.data.synthetic import SyntheticSet, write_synthetic
from mbt_fast.errors import CheckpointError
from mbt_fast.train.loop import Loop

RECIPE = """
[model]
name = "mbt_tiny"
[data]
train = "train.csv"
labels = "labels.txt"
workers = 0
mean = -3.0
[train]
task = "single"
steps = 2
batch_size = 4
lr = 0.05
device = "cpu"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    list(write_synthetic(folder, SyntheticSet(clips=6, classes=2, seconds=1.0, val=0.0)))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """A finished run; overrides stand before and after an option."""
    recipe, out = str(folder / "recipe.toml"), folder / "run"
    changes = ("train.seed=3", "--out", str(out), "train.lr=0.1", "data.workers=0")
    assert main(["train", recipe, *changes]) == 0
    return out


def refused(capsys, *arguments):
    """The one line that a command prints when it refuses its arguments."""
    assert main([*map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_run_has_the_configuration_with_all_overrides(run):
    config = json.loads((resolve_run(run) / "state.json").read_text())["config"]
    assert (config["train.seed"], config["train.lr"]) == (3, 0.1)


def test_run_goes_on_without_the_files_with_which_it_began(run, folder, tmp_path, capsys):
    begin = tmp_path / "begin"
    MBT.from_pretrained(run).save_pretrained(begin)
    command = ["train", str(folder / "recipe.toml"), f"init.checkpoint={begin}"]
    command += ["--out", str(tmp_path / "run")]
    assert main(command) == 0
    shutil.rmtree(begin)
    assert main(command) == 0
    first, again = capsys.readouterr().out.splitlines()
    assert first == again


def test_shorthands_are_values_of_the_section_train(folder, capsys):
    recipe = folder / "recipe.toml"
    options = ("--backend", "reference", "--recompute", "mlp")
    assert main(["train", str(recipe), "--dry-run", *options]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["backend", "=", '"reference"', "#", "override"] in shown
    assert ["recompute", "=", '"mlp"', "#", "override"] in shown


def test_dry_run_writes_nothing(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(folder / "recipe.toml"), "--dry-run", "--out", "run"]) == 0
    assert "waits:" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_is_one_line(folder, capsys, monkeypatch):
    recipe = folder / "recipe.toml"
    assert "--out must name the folder of the run" in refused(capsys, "train", recipe)
    assert "did you mean train.lr?" in refused(capsys, "train", recipe, "train.lrr=1", "--out", "x")
    assert "recipe 'audioset' is unknown" in refused(capsys, "train", "audioset", "--out", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "RANK must be set where WORLD_SIZE is above 1" in refused(
        capsys, "train", recipe, "--out", "x"
    )


def test_a_run_that_a_signal_stopped_is_not_taken_for_done(folder, tmp_path, monkeypatch):
    command = ["train", str(folder / "recipe.toml"), "--out", str(tmp_path / "run")]
    step = Loop._step
    with monkeypatch.context() as patch:
        patch.setattr(
            Loop, "_step", lambda *args: signal.raise_signal(signal.SIGTERM) or step(*args)
        )
        assert main(command) == 75
    assert main(command) == 0


def test_labels_with_a_name_twice_do_not_end_predict(run, folder, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("tone\ntone\n")
    clip = str(next((folder / "clips").iterdir()))
    options = ("--labels", str(labels), "--activation", "sigmoid")
    assert main(["predict", clip, "--checkpoint", str(run), *options]) == 0


def test_unknown_option_is_still_refused(folder, capsys):
    for arguments in (["train", "vggsound", "--ot", "x"], ["info", "train.lr=1"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "unrecognized arguments" in capsys.readouterr().err


def test_run_is_a_checkpoint_for_predict_with_its_own_labels_and_front_end(
    run, folder, tmp_path, capsys
):
    clip = str(next((folder / "clips").iterdir()))
    out = tmp_path / "out.json"
    assert main(["predict", clip, "--checkpoint", str(run), "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    classes = report["clips"][0]["classes"]
    assert {entry["label"] for entry in classes} == {"tone-0", "tone-1"}
    assert sum(entry["probability"] for entry in classes) == pytest.approx(1)
    assert report["activation"] == "softmax"
    assert report["notes"] == []


def probabilities(clip, checkpoint, folder, *options):
    """What predict says of a clip, by class."""
    out = folder / "out.json"
    command = ["predict", str(clip), "--checkpoint", str(checkpoint), "--json", str(out), *options]
    assert main(command) == 0
    classes = json.loads(out.read_text())["clips"][0]["classes"]
    return {entry["label"]: entry["probability"] for entry in classes}


def test_front_end_of_the_run_is_used_unless_it_is_given(run, folder, tmp_path):
    clip = next((folder / "clips").iterdir())
    usual = probabilities(clip, run, tmp_path)
    assert usual == probabilities(clip, run, tmp_path, "--spec-mean", "-3.0")
    assert usual != probabilities(clip, run, tmp_path, "--spec-mean", "4.0")


@pytest.mark.parametrize("task", ["single", "multilabel", "verb_noun", "multitask"])
def test_names_that_are_shown_may_occur_twice(run, tmp_path, task):
    state_file = resolve_run(run) / "state.json"
    copied = tmp_path / "copied"
    shutil.copytree(state_file.parent, copied)
    state = json.loads(state_file.read_text())
    state["config"]["train.task"] = task
    if task in ("verb_noun", "multitask"):
        state["labels"] = ["verb:cut", "noun:cup"]
    (copied / "state.json").write_text(json.dumps(state))
    (tmp_path / "labels.txt").write_text("same\nsame\n")
    clip = next((run.parent / "clips").iterdir())
    shown = probabilities(clip, copied, tmp_path, "--labels", str(tmp_path / "labels.txt"))
    assert list(shown) == ["same"]
    # A softmax over one verb is 1, whatever its name.
    assert (shown["same"] == 1) == (task in ("verb_noun", "multitask"))


@pytest.mark.parametrize(
    ("names", "options", "total"),
    [
        (["sum:even", "shown:1"], ["--task", "multitask"], 2),
        (["sum:even", "shown:1"], ["--activation", "softmax"], 1),
        (["verb:cut", "noun:cup"], ["--activation", "softmax"], 2),
        (["verb:cut", "verb:wash"], ["--activation", "softmax"], 1),
    ],
)
def test_weights_without_a_run_have_the_heads_of_their_task(run, tmp_path, names, options, total):
    """Each head has a softmax of its own, so that its classes sum to one."""
    MBT.from_pretrained(run).save_pretrained(tmp_path / "weights")
    (tmp_path / "labels.txt").write_text("\n".join(names))
    options = ["--labels", str(tmp_path / "labels.txt"), *options]
    clip = next((run.parent / "clips").iterdir())
    shown = probabilities(clip, tmp_path / "weights", tmp_path, *options)
    assert sum(shown.values()) == pytest.approx(total)


def test_the_best_classes_of_each_head_are_shown(run, tmp_path):
    """A head that is sure of nothing is shown beside one whose every class is likelier."""
    model = create_model("mbt_tiny", num_classes=7)
    model.head.bias.data[:] = torch.tensor([0.0, 0.2, 0.1, 0.3, 0.4, 1.0, 2.0])
    model.save_pretrained(tmp_path / "weights")
    names = [*(f"flat:{k}" for k in range(5)), "sure:0", "sure:1"]
    (tmp_path / "labels.txt").write_text("\n".join(names))
    options = ["--labels", str(tmp_path / "labels.txt"), "--task", "multitask", "--top", "2"]
    clip = next((run.parent / "clips").iterdir())
    shown = probabilities(clip, tmp_path / "weights", tmp_path, *options)
    assert list(shown) == ["sure:1", "sure:0", "flat:4", "flat:3"]


def test_predict_knows_the_task_of_a_run(run, capsys):
    clip = next((run.parent / "clips").iterdir())
    line = refused(capsys, "predict", clip, "--checkpoint", run, "--task", "multitask")
    assert "--task must be that of the run, 'single', got 'multitask'" in line


def test_padding_is_masked_as_it_was_in_the_run(run, tmp_path):
    """The window has 0.64 s of sound, the clip 0.3 s."""
    list(write_synthetic(tmp_path, SyntheticSet(clips=2, classes=2, seconds=0.3)))
    masked = tmp_path / "masked"
    shutil.copytree(resolve_run(run), masked)
    state = json.loads((masked / "state.json").read_text())
    state["config"]["data.mask_padding"] = True
    (masked / "state.json").write_text(json.dumps(state))
    clip = next((tmp_path / "clips").iterdir())
    assert probabilities(clip, masked, tmp_path) != probabilities(clip, run, tmp_path)


def test_run_is_a_checkpoint_for_convert_and_from_pretrained(run, tmp_path, capsys):
    assert main(["convert", str(run), str(tmp_path / "model")]) == 0
    weights, converted = (MBT.from_pretrained(path) for path in (run, tmp_path / "model"))
    assert weights.config == converted.config
    expected = converted.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.state_dict().items())


def test_best_and_latest_of_a_run_are_checkpoints_too(run, tmp_path):
    (tmp_path / "best").write_text(f"{resolve_run(run)}\n")
    for path in (run / "latest", tmp_path / "best"):
        assert load_pretrained(path)[0] == load_pretrained(run)[0]
        assert read_state(path)["labels"] == ["tone-0", "tone-1"]
    assert main(["convert", str(tmp_path / "best"), str(tmp_path / "model")]) == 0


def test_run_without_a_checkpoint_is_named_as_such(tmp_path):
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(CheckpointError, match="the run has no checkpoint yet"):
        MBT.from_pretrained(tmp_path)
    (tmp_path / "latest").write_text("checkpoints/step-00000004\n")
    with pytest.raises(CheckpointError, match=r"must name a checkpoint, got .*step-00000004"):
        MBT.from_pretrained(tmp_path)


def test_weights_that_no_run_wrote_have_no_state(run, tmp_path):
    MBT.from_pretrained(run).save_pretrained(tmp_path)
    assert read_state(tmp_path) == {}
