"""What each rank does of a step and of a score."""

from unittest import mock

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, run

from mbt_fast.errors import InputError
from mbt_fast.parallel.ranks import start
from mbt_fast.train import TrainConfig, report, train
from mbt_fast.train.dataset import Batch, Broken
from mbt_fast.train.log import read
from mbt_fast.train.share import check_world, meet
from mbt_fast.train.stopping import Stopping

FSDP = "train.parallel=fsdp"


@pytest.mark.parametrize(
    ("overrides", "world", "can"),
    [
        (["train.batch_size=6"], 4, "1, 2, 3, 6 with train.batch_size = 6"),
        (["train.batch_size=8", "train.micro_batch=4"], 4, "1, 2 with train.batch_size = 8, "),
        (["train.batch_size=8", "train.virtual_devices=2"], 4, "1, 2 with .*virtual_devices = 2"),
    ],
)
def test_ranks_that_cannot_share_a_batch_are_told_who_can(recipe, overrides, world, can):
    config = TrainConfig.from_toml(recipe, overrides)
    with pytest.raises(InputError, match=rf"must be one of {can}.*; got 4"):
        check_world(config.train, world)


def test_one_process_can_do_anything_that_the_recipe_says(recipe):
    check_world(TrainConfig.from_toml(recipe, ["train.virtual_devices=2", FSDP]).train, 1)


def test_virtual_devices_of_a_sharded_model_are_refused(recipe):
    config = TrainConfig.from_toml(recipe, ["train.virtual_devices=2", FSDP])
    with pytest.raises(InputError, match=r"train\.virtual_devices must be 0 with train\.parallel"):
        check_world(config.train, 2)


def refused(recipe, out):
    with pytest.raises(InputError) as raised:
        train(TrainConfig.from_toml(recipe, ["train.batch_size=5", "data.train=gone.csv"]), out)
    return str(raised.value)


def test_a_refusal_comes_before_a_clip_is_read_and_is_said_once(recipe, tmp_path):
    said = run(2, refused, recipe, tmp_path / "run")
    assert sum("must be one of 1, 5" in text for text in said) == 1
    assert sum("ends at the start: rank" in text for text in said) == 1
    assert not (tmp_path / "run").exists()


def batch_of(rank, broken=(), empty=False):
    inputs = {} if empty else {"rgb": torch.zeros(1)}
    return Batch(inputs, None, torch.zeros(1), [rank], [Broken(index, "bad") for index in broken])


def met():
    rank, stop = dist.get_rank(), Stopping()
    with start("cpu") as ranks:
        plain = meet(batch_of(rank), stop, ranks)
        broken = meet(batch_of(rank, broken=[rank] * rank), stop, ranks)
        empty = meet(batch_of(rank, broken=[rank], empty=rank == 1), stop, ranks)
        if rank == 1:
            stop.note(10)
        ended = meet(batch_of(rank), stop, ranks)
    told = [len(plain.broken), [one.index for one in broken.broken], bool(empty.inputs)]
    return [*told, ended, stop.signal]


def test_ranks_begin_a_step_with_the_same_news():
    assert run(3, met) == [[0, [1, 2, 2], False, None, "SIGUSR1"]] * 3


def scored(recipe, overrides, out):
    with mock.patch.object(report, "write"):
        return train(TrainConfig.from_toml(recipe, overrides), out).scores


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_scores_of_uneven_shares_count_each_clip_once(recipe, tmp_path, how):
    """5 clips on 3 ranks, one broken and some without sound."""
    options = ["train.steps=1", "train.batch_size=3", "eval.batch_size=1", f"train.parallel={how}"]
    together = run(3, scored, recipe, options, tmp_path / "together")
    assert together == [together[0]] * 3, "every rank has the same scores"
    alone = scored(recipe, options, tmp_path / "alone")
    assert together[0] == alone
    assert alone["n"] + len(alone["broken"]) == 5
    assert alone["broken"]


def test_too_many_broken_clips_in_a_score_end_the_run(recipe, tmp_path):
    options = ["train.steps=1", "data.broken_limit=0.15"]
    with pytest.raises(RankError, match=r"at most 0\.15, and 1 of 5") as raised:
        run(2, scored, recipe, options, tmp_path)
    assert "rank 1 ends at step 1, score: rank 0 failed at step 1, score" in str(raised.value)


def broken_run(recipe, out):
    config = TrainConfig.from_toml(recipe, ["train.steps=6", "data.broken_limit=0.1", "data.val="])
    report.write = lambda *_: None
    with pytest.raises(InputError) as raised:
        train(config, out)
    return str(raised.value)


def test_broken_clips_of_all_ranks_are_counted_together(recipe, tmp_path):
    said = run(2, broken_run, recipe, tmp_path)
    assert sum("2 of 12 cannot be read" in text for text in said) == 1
    lines = read(tmp_path / "broken.jsonl")
    assert len({line["id"] for line in lines}) == len(lines) == 2
