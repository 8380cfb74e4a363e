"""A run goes on with any number of ranks."""

import pytest
import torch
from ranks import run
from safetensors.torch import load_file
from training import assert_same_records, assert_same_tensors, trained

from mbt_fast.train import checkpoints

# Whatever the ranks: virtual devices draw for themselves; without them nothing is drawn.
DRAWN = ["augment.mixup=0.3", "augment.flip=0.5", "model.stochastic_depth=0.3"]
ADAMW = ["train.optimizer=adamw", "train.lr=0.001", "train.weight_decay=0.1"]
AVERAGED = ["train.ema=0.5", "train.average_last=2", "train.clip_norm=0.5"]
RUNS = {
    "ddp": ["train.virtual_devices=4", *DRAWN, *AVERAGED],
    "fsdp": ["train.parallel=fsdp", *ADAMW, *AVERAGED],
}
STOPS = 2, 4, 6


def go_on(recipe, overrides, out, stop_at):
    outcome, records, _ = trained(recipe, overrides, out, saves=True, stop_at=stop_at)
    return (outcome.step, outcome.stopped_by), records


@pytest.mark.slow
@pytest.mark.parametrize("how", RUNS)
def test_a_run_goes_on_with_another_number_of_ranks(recipe, tmp_path, how):
    """On 2, 1 and 4 ranks, against one process that was never stopped."""
    options = ["train.steps=6", "checkpoint.every_steps=2", "checkpoint.keep=9", *RUNS[how]]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _, expected = go_on(recipe, options, tmp_path / "alone", None)
    for world, stop_at in zip((2, 1, 4), STOPS, strict=True):
        call = recipe, options, tmp_path / "together", stop_at
        results = [go_on(*call)] if world == 1 else run(world, go_on, *call)
        end = (stop_at, "SIGUSR1" if stop_at < 6 else None)
        assert [result[0] for result in results] == [end] * world, "all ranks end alike"
    torch.set_num_threads(threads)
    assert_same_records(results[0][1], expected)
    for step in STOPS:
        for file in ("model", "optimizer"):
            runs = (tmp_path / "together", tmp_path / "alone")
            name = f"{file}.safetensors"
            tensors = (load_file(checkpoints.folder_of(out, step) / name) for out in runs)
            assert_same_tensors(*tensors, f"{name} of step {step}")
