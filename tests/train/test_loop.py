"""A run from files to scores: what it writes, what ends it, what its options mean."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mbt_fast import MBT
from mbt_fast.checkpoint.runs import BEST, find_checkpoint
from mbt_fast.errors import CheckpointError, InputError, RunError
from mbt_fast.train import checkpoints, train
from mbt_fast.train.averaging import average
from mbt_fast.train.folder import locked
from mbt_fast.train.loader import Loader
from mbt_fast.train.log import Log, read
from mbt_fast.train.loop import Loop
from mbt_fast.train.run import Run
from mbt_fast.train.state import TrainingState

STEPS, PER_EPOCH = 12, 4


def weights(run, step=STEPS):
    return load_file(checkpoints.folder_of(run, step) / "model.safetensors")


def records(run, kind):
    return [record for record in read(run / "log.jsonl") if record["kind"] == kind]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    """A run that nothing disturbed."""
    from mbt_fast.train import TrainConfig

    run = tmp_path_factory.mktemp("runs") / "whole"
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    outcome = train(TrainConfig.from_toml(clips / "recipe.toml"), run)
    assert torch.equal(torch.rand(1), expected), "torch's own generator is as before"
    assert (outcome.step, outcome.total, outcome.stopped_by) == (STEPS, STEPS, None)
    return run


def test_a_run_leaves_what_its_folder_is_said_to_hold(whole):
    expected = {"config.toml", "labels.txt", "log.jsonl", "broken.jsonl", "report.html"}
    assert expected | {"latest", "best", "checkpoints"} == {
        path.name for path in whole.iterdir() if not path.name.startswith(".")
    }
    assert (whole / "labels.txt").read_text().split() == [f"tone-{index}" for index in range(4)]
    assert checkpoints.step_of(find_checkpoint(whole)) == STEPS
    state = json.loads((find_checkpoint(whole) / "state.json").read_text())
    assert (state["step"], state["epoch"]) == (STEPS, 3)
    assert state["front_end"]["window"] == "hamming"
    assert state["labels"] == [f"tone-{index}" for index in range(4)]
    assert len(state["manifest"]) == 64


def test_every_step_is_in_the_log(whole):
    lines = records(whole, "train")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["epoch"] for line in lines] == [1] * 4 + [2] * 4 + [3] * 4
    for line in lines:
        assert line["loss"] > 0
        assert {"loss/rgb", "loss/spectrogram", "grad_norm", "lr"} <= line.keys()
        assert line["clips_per_second"] > 0
        assert 0 <= line["data_wait"] <= 1
    assert lines[0]["lr"] == 0.05
    assert 0 < lines[-1]["lr"] < 0.05 / 20, "the cosine is near its end"


def test_scores_come_after_each_epoch_and_at_the_end(whole):
    lines = records(whole, "eval")
    assert [(line["step"], line["views"]) for line in lines] == [(4, 1), (8, 1), (12, 1), (12, 2)]
    for line in lines:
        assert 0 <= line["top1"] <= line["top5"] == 1
        assert line["n"] == 4
        assert line["split"] == "val"


def test_best_names_the_checkpoint_of_the_best_score(whole):
    scores = {line["step"]: line["top1"] for line in records(whole, "eval")[:3]}
    best = find_checkpoint(whole, BEST)
    assert checkpoints.step_of(best) == max(scores, key=lambda step: (scores[step], -step))


def test_broken_clips_are_listed_once_with_their_reason(whole):
    lines = read(whole / "broken.jsonl")
    assert len({line["id"] for line in lines}) == len(lines) > 0
    assert all("not a readable media file" in line["error"] for line in lines)
    assert all(Path(line["path"]).exists() for line in lines)


def test_a_checkpoint_is_a_model(whole):
    model = MBT.from_pretrained(find_checkpoint(whole))
    assert model.config.num_classes == 4
    assert same(model.state_dict(), weights(whole))
    assert same(MBT.from_pretrained(whole).state_dict(), weights(whole))


def test_the_report_is_one_file_with_curves(whole):
    text = (whole / "report.html").read_text()
    assert text.count("<svg") >= 6
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "<script" not in text
    for heading in ("Scores", "Loss", "Speed", "Broken clips", "Configuration"):
        assert f"<h2>{heading}</h2>" in text


def test_a_finished_run_is_not_trained_again(whole, configure):
    before = (whole / "log.jsonl").read_text()
    outcome = train(configure(), whole)
    assert outcome.step == STEPS
    assert (whole / "log.jsonl").read_text() == before


def test_workers_do_not_change_a_run(whole, configure, tmp_path):
    train(configure("data.workers=2"), tmp_path)
    assert same(weights(tmp_path), weights(whole))
    assert [line["loss"] for line in records(tmp_path, "train")] == [
        line["loss"] for line in records(whole, "train")
    ]


def test_another_seed_is_another_run(whole, configure, tmp_path):
    train(configure("train.seed=1"), tmp_path)
    assert not same(weights(tmp_path), weights(whole))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_saves_at_the_next_step_and_the_run_resumes(
    whole, configure, tmp_path, monkeypatch, name
):
    before = signal.getsignal(getattr(signal, name))
    with monkeypatch.context() as patch:
        step = Loop._step

        def interrupted(self, number, batch):
            if number == 4:
                signal.raise_signal(getattr(signal, name))
            return step(self, number, batch)

        patch.setattr(Loop, "_step", interrupted)
        outcome = train(configure(), tmp_path)
    assert (outcome.step, outcome.stopped_by) == (5, name)
    assert str(outcome) == f"stopped by {name} at step 5 of 12; the same command resumes"
    assert checkpoints.step_of(find_checkpoint(tmp_path)) == 5
    assert signal.getsignal(getattr(signal, name)) == before
    assert train(configure(), tmp_path).stopped_by is None
    assert same(weights(tmp_path), weights(whole))


def test_a_signal_within_a_score_ends_the_run_and_the_score_is_made_later(
    whole, configure, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        score = Run._score

        def interrupted(self, evaluation, stop):
            signal.raise_signal(signal.SIGTERM)
            return score(self, evaluation, stop)

        patch.setattr(Run, "_score", interrupted)
        outcome = train(configure(), tmp_path)
    assert (outcome.step, outcome.stopped_by) == (4, "SIGTERM")
    assert not records(tmp_path, "eval")
    train(configure(), tmp_path)
    assert records(tmp_path, "eval") == records(whole, "eval")
    assert same(weights(tmp_path), weights(whole))


def test_a_signal_while_a_batch_does_not_come_saves(configure, tmp_path, monkeypatch):
    following, calls = Loader.__next__, iter(range(100))

    def interrupted(loader):
        if next(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return following(loader)

    monkeypatch.setattr(Loader, "__next__", interrupted)
    outcome = train(configure(), tmp_path)
    assert (outcome.step, outcome.stopped_by) == (2, "SIGTERM")
    assert checkpoints.step_of(find_checkpoint(tmp_path)) == 2


def test_a_full_disk_ends_the_run_and_loses_nothing(whole, configure, tmp_path, monkeypatch):
    write = TrainingState.write

    def full(self, folder, record):
        write(self, folder, record)
        if record["step"] == 6:
            raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "write", full)
        with pytest.raises(CheckpointError, match="No space left on device") as raised:
            train(configure(), tmp_path)
    assert "step-00000004" in str(raised.value)
    train(configure(), tmp_path)
    assert same(weights(tmp_path), weights(whole))


def test_another_configuration_in_the_folder_is_refused_with_the_difference(whole, configure):
    with pytest.raises(InputError, match=r"train\.lr was 0\.05 and is 0\.1; train\.seed was 0"):
        train(configure("train.lr=0.1", "train.seed=1"), whole)


def test_other_clips_in_the_folder_are_refused(clips, configure, tmp_path):
    run = tmp_path / "run"
    train(configure("train.epochs=1"), run)
    fewer = clips / "fewer.csv"
    fewer.write_text("".join((clips / "train.csv").read_text().splitlines(True)[:-1]))
    with pytest.raises(InputError, match="training clips and labels must be those"):
        train(configure("train.epochs=1", f"data.train={fewer}"), run)
    with pytest.raises(InputError, match=r"clips and labels of data\.val must be those"):
        train(configure("train.epochs=1", f"data.val={fewer}"), run)


def test_a_run_goes_on_when_its_clips_were_moved(clips, configure, tmp_path):
    moved, run = tmp_path / "moved", tmp_path / "run"
    train(configure("train.epochs=1"), run)
    moved.symlink_to(clips)
    files = [f"data.{name}={moved / name}.csv" for name in ("train", "val")]
    files.append(f"data.labels={moved / 'labels.txt'}")
    assert train(configure("train.epochs=1", *files), run).step == PER_EPOCH


def test_two_processes_in_one_folder_are_refused(configure, tmp_path):
    with locked(tmp_path), pytest.raises(InputError, match="in use"):
        train(configure(), tmp_path)


def test_a_batch_larger_than_the_data_is_refused_before_a_folder_is_made(configure, tmp_path):
    with pytest.raises(InputError, match=r"train\.batch_size must be at most"):
        train(configure("train.batch_size=17"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_many_broken_clips_end_the_run_with_the_list(configure, tmp_path):
    with pytest.raises(RunError, match=r"1 of 16 cannot be read; .*broken\.jsonl lists") as raised:
        train(configure("data.broken_limit=0.05"), tmp_path)
    assert "\n" not in str(raised.value)
    assert len(read(tmp_path / "broken.jsonl")) == 1


def test_a_run_with_too_many_broken_clips_goes_on_with_another_limit(whole, configure, tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        train(configure("data.broken_limit=0.1", "checkpoint.every_steps=100"), tmp_path)
    step = records(tmp_path, "train")[-1]["step"]
    assert checkpoints.step_of(find_checkpoint(tmp_path)) == step, "nothing is done again"
    train(configure("data.broken_limit=0.2"), tmp_path)
    assert same(weights(tmp_path), weights(whole))


def test_a_folder_that_holds_no_clips_ends_the_run_soon(clips, configure, tmp_path):
    gone = tmp_path / "gone.csv"
    rows = (clips / "train.csv").read_text().replace("clips/", "elsewhere/")
    gone.write_text(rows)
    with pytest.raises(RunError, match="16 of 16 cannot be read"):
        train(configure(f"data.train={gone}", "data.broken_limit=0.99"), tmp_path / "run")


def test_clips_of_which_none_can_be_read_are_one_line_without_a_limit(clips, configure, tmp_path):
    gone = tmp_path / "gone.csv"
    gone.write_text((clips / "train.csv").read_text().replace("clips/", "elsewhere/"))
    with pytest.raises(RunError, match=r"must have clips that can be read.*no such file"):
        train(configure(f"data.train={gone}", "data.broken_limit=1.0"), tmp_path / "run")


def test_a_validation_set_that_is_gone_ends_the_run(clips, configure, tmp_path):
    gone = tmp_path / "gone.csv"
    gone.write_text((clips / "val.csv").read_text().replace("clips/", "elsewhere/"))
    with pytest.raises(RunError, match=r"4 of 4 in .*gone\.csv cannot be read"):
        train(configure(f"data.val={gone}", "train.epochs=1"), tmp_path / "run")
    assert checkpoints.step_of(find_checkpoint(tmp_path / "run")) == PER_EPOCH


def test_several_processes_without_an_address_are_refused(configure, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="RANK must be set where WORLD_SIZE is above 1"):
        train(configure(), tmp_path / "run")


def test_what_is_averaged_ends_epochs_also_if_the_run_does_not(configure, tmp_path, monkeypatch):
    saved = []
    write = TrainingState.write
    monkeypatch.setattr(
        TrainingState,
        "write",
        lambda self, to, record: saved.append(record["step"]) or write(self, to, record),
    )
    options = ["train.steps=10", "train.average_last=3", "checkpoint.every_steps=100"]
    train(configure(*options, "data.val="), tmp_path)
    assert saved == [4, 8, 10]


def test_a_loss_that_is_not_finite_names_the_clips_and_spares_the_weights(configure, tmp_path):
    with pytest.raises(RunError, match=r"must be finite, got (nan|inf) at step (\d+)") as raised:
        train(configure("train.lr=1e30", "checkpoint.every_steps=1"), tmp_path)
    named = str(raised.value).partition("clips ")[2].split(", ")
    assert len(named) == 4
    assert all(name.isdecimal() for name in named)
    last = checkpoints.step_of(find_checkpoint(tmp_path))
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path, last).values())


def test_the_moving_average_is_what_is_saved_and_scored(configure, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    options = ["train.ema=0.5", "train.epochs=1", "augment.mixup=0.0"]
    train(configure(*options), run)
    tensors = load_file(find_checkpoint(run) / "optimizer.safetensors")
    trained = {name[8:]: x for name, x in tensors.items() if name.startswith("weights/")}
    assert trained.keys() == weights(run, 4).keys()
    assert not same(trained, weights(run, 4))
    train(configure(*options[1:]), again)
    assert same(trained, weights(again, 4)), "the average does not change training"


def test_a_run_with_a_moving_average_resumes(configure, tmp_path, monkeypatch):
    whole, run = tmp_path / "whole", tmp_path / "run"
    config = configure("train.ema=0.5", "train.epochs=2")
    train(config, whole)
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_check_finite", stopping_at(5))
        train(config, run)
    train(config, run)
    assert same(weights(run, 8), weights(whole, 8))


def stopping_at(number):
    """In place of a check within a step: ask the run to stop at this one."""

    def check(self, step, record, batch):
        if step == number:
            signal.raise_signal(signal.SIGTERM)

    return check


def test_the_last_epochs_are_averaged_at_the_end(whole, configure, tmp_path, monkeypatch):
    config = configure("train.average_last=2", "checkpoint.keep=1", "checkpoint.best=false")
    saved = {}
    write = TrainingState.write

    def remembered(self, folder, record):
        write(self, folder, record)
        saved[record["step"]] = {n: t.clone() for n, t in self.model.state_dict().items()}

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "write", remembered)
        patch.setattr(Loop, "_check_finite", stopping_at(9))
        train(config, tmp_path)
    train(config, tmp_path)
    expected = average([saved[8], weights(whole)])
    assert same(weights(tmp_path), expected)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000012"]
    assert records(tmp_path, "eval")[-1]["step"] == STEPS


def test_a_finished_run_with_both_averages_resumes(configure, tmp_path, monkeypatch):
    config = configure("train.average_last=2", "train.ema=0.5", "train.epochs=2")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_score", stopping_in_the_last_score)
        assert train(config, tmp_path).stopped_by == "SIGTERM"
    expected = weights(tmp_path, 8)
    assert [train(config, tmp_path).step for _ in range(2)] == [8, 8]
    assert same(weights(tmp_path, 8), expected)
    assert [line["step"] for line in records(tmp_path, "eval")] == [8, 8]


def stopping_in_the_last_score(self, evaluation, stop):
    """In place of scores: none of those before, and a signal in the last."""
    if self.step == 8:
        signal.raise_signal(signal.SIGTERM)


def test_the_last_score_is_made_once_if_it_is_like_that_of_an_epoch(configure, tmp_path):
    train(configure("train.epochs=1", "eval.views=1"), tmp_path)
    assert [(line["step"], line["views"]) for line in records(tmp_path, "eval")] == [(4, 1)]


def test_a_step_does_not_look_at_the_log(configure, tmp_path, monkeypatch):
    """It has a record of each step before: the time of a step would grow."""
    readings, steps = [], []
    monkeypatch.setattr(Log, "records", lambda log: readings.append(log) or read(log.path))
    step = Loop._step
    monkeypatch.setattr(Loop, "_step", lambda *args: steps.append(readings[:]) or step(*args))
    train(configure("data.val=", "train.epochs=2"), tmp_path)
    assert len(steps) == 8
    assert steps[0] == steps[-1]


def test_a_run_without_validation_clips_has_no_scores(configure, tmp_path):
    outcome = train(configure('data.val=""', "train.steps=2"), tmp_path)
    assert outcome.scores == {}
    assert str(outcome) == "step 2 of 2"
    assert not records(tmp_path, "eval")
    assert not (tmp_path / "best").exists()


def test_log_every_gives_the_rates_of_all_steps_since(configure, tmp_path):
    train(configure("train.log_every=2", "train.steps=4", "eval.every_epochs=0"), tmp_path)
    assert [line["step"] for line in records(tmp_path, "train")] == [2, 4]
    assert [(line["step"], line["views"]) for line in records(tmp_path, "eval")] == [(4, 2)]


def test_verbs_and_nouns_train(clips, configure, tmp_path):
    for name in ("train", "val"):
        rows = (clips / f"{name}.csv").read_text().splitlines()[1:]
        lines = ["path,id,verb,noun"]
        for path, id_, label in (row.split(",") for row in rows):
            lines.append(f"{clips / path},{id_},{label[-1]},{int(label[-1]) // 2}")
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    files = [f"data.{name}={tmp_path / name}.csv" for name in ("train", "val")]
    options = ["train.task=verb_noun", 'data.labels=""', "train.steps=2", "eval.views=1"]
    outcome = train(configure(*files, *options), tmp_path / "run")
    assert {"verb", "noun", "action"} <= outcome.scores.keys()
    names = (tmp_path / "run" / "labels.txt").read_text().split()
    assert names == ["verb:0", "verb:1", "verb:2", "verb:3", "noun:0", "noun:1"]


def test_several_heads_train(clips, configure, tmp_path):
    for name in ("train", "val"):
        rows = (clips / f"{name}.csv").read_text().splitlines()[1:]
        lines = ["path,id,labels.number,labels.half"]
        for path, id_, label in (row.split(",") for row in rows):
            lines.append(f"{clips / path},{id_},{label[-1]},{int(label[-1]) // 2}")
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    files = [f"data.{name}={tmp_path / name}.csv" for name in ("train", "val")]
    options = ["train.task=multitask", 'data.labels=""', "train.steps=2", "eval.views=1"]
    outcome = train(configure(*files, *options), tmp_path / "run")
    assert {"top1", "top1/number", "top1/half"} <= outcome.scores.keys()
    assert "top1/half" in str(outcome)
    names = (tmp_path / "run" / "labels.txt").read_text().split()
    assert names == [*(f"number:{k}" for k in range(4)), "half:0", "half:1"]
    assert (tmp_path / "run" / "best").exists()


def test_loss_of_the_mean_logits_trains(configure, tmp_path):
    """Classifiers of zeros learn alike in the first step, and have both kinds of records."""
    options = ["model.fusion_layer=2", "train.steps=3", "train.optimizer=adamw", "eval.views=1"]
    train(configure(*options), tmp_path / "apart")
    train(configure(*options, "train.loss=mean_logits"), tmp_path / "mean")
    apart, mean = records(tmp_path / "apart", "train"), records(tmp_path / "mean", "train")
    for name in ("loss/rgb", "loss/spectrogram"):
        assert mean[0][name] == apart[0][name]
        assert mean[2][name] != apart[2][name]


@pytest.mark.parametrize("task", ["multilabel", "single"])
@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
def test_every_task_and_sampling_trains(configure, tmp_path, task, sampling):
    options = [f"train.task={task}", f"data.sampling={sampling}", "train.steps=2"]
    outcome = train(configure(*options, "eval.views=1"), tmp_path)
    assert {"multilabel": "mAP", "single": "top1"}[task] in outcome.scores


@pytest.mark.parametrize("classifier", ["gap", "gap_per_modality"])
def test_a_mean_over_tokens_trains_on_clips_without_sound(configure, tmp_path, classifier):
    options = [f"model.classifier={classifier}", "train.epochs=1", "augment.modality_dropout=0.3"]
    train(configure(*options, "augment.mixup=0.3", "eval.views=1"), tmp_path)
    names = {"gap": ["shared"], "gap_per_modality": ["rgb", "spectrogram"]}[classifier]
    for line in records(tmp_path, "train"):
        assert [name[5:] for name in line if name.startswith("loss/")] == names
        assert line["loss"] > 0
