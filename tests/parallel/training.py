"""Train in float64, by the trainer itself, and keep what the last step did."""

import signal
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mbt_fast.checkpoint.runs import find_checkpoint
from mbt_fast.parallel.ranks import start
from mbt_fast.train import TrainConfig, report
from mbt_fast.train.loop import Loop
from mbt_fast.train.order import generator
from mbt_fast.train.parts import build_parts, read_data
from mbt_fast.train.share import check_world
from mbt_fast.train.stopping import Stopping

TOLERANCE = 1e-12  # of float64
LEFT_OUT = ("kind", "clips_per_second", "data_wait")  # the last two are the machine's


def trained(recipe, overrides, out, *, saves=False, stop_at=None, dtype=torch.float64):
    """Train, or go on, on the ranks that there are.

    Args:
        recipe: What to train, and on which clips. No scores are made: they are in float32.
        overrides: What differs from it.
        out: The folder of the run.
        saves: Checkpoints are written, which takes a while.
        stop_at: After this step the last rank is as if it had been sent a signal.
        dtype: Of the weights and inputs.

    Returns:
        How it ended, records of the log, and this rank's gradients and weights after the last step.
    """
    config = TrainConfig.from_toml(recipe, ["data.val=", *overrides])
    with start("cpu") as ranks, ExitStack() as stack:
        stack.enter_context(mock.patch.object(report, "write"))  # one process is the test's own
        check_world(config.train, ranks.world)
        data = read_data(config)
        config = config.with_num_classes(len(data.names))
        parts = build_parts(config, data, find_checkpoint(Path(out)), ranks)
        draws = generator(0, "head")  # which would be zero, and let no gradient through
        nn.init.normal_(parts.model.head.weight, std=0.3, generator=draws)
        parts.model.to(dtype)
        Path(out).mkdir(parents=True, exist_ok=True)
        loop = stack.enter_context(Loop(parts, Path(out), Stopping()))
        tensors = widened(loop, dtype, stop_at if ranks.rank == ranks.world - 1 else None)
        if not saves:
            loop.run.save = lambda: None
        outcome = loop.train()
        return outcome, [numbers(record) for record in loop.run.log.records()], tensors


def widened(loop, dtype, stop_at):
    """Give the loop inputs of a dtype; returns where the last step leaves its tensors."""
    augment, step, tensors = loop.augment, loop.optimizer.step, {}

    def augmented(*batch):
        batch = augment(*batch)
        return batch._replace(inputs={m: x.to(dtype) for m, x in batch.inputs.items()})

    def stepped(*args):
        named = dict(loop.parts.model.named_parameters())
        last = loop.run.step == loop.parts.total_steps - 1
        if last:
            used = {name: p.grad for name, p in named.items() if p.grad is not None}
            tensors.update({f"gradient of {name}": own(grad) for name, grad in used.items()})
        step(*args)
        if loop.run.step + 1 == stop_at:
            loop.stop.note(signal.SIGUSR1)
        if last:
            tensors.update({name: own(p.detach()) for name, p in named.items()})

    loop.augment, loop.optimizer.step = augmented, stepped
    return tensors


def own(tensor):
    """What this rank has of a tensor, and whether that is a share of it."""
    sharded = isinstance(tensor, DTensor)
    return (tensor.to_local() if sharded else tensor).clone(), sharded


def joined(results):
    """Records and whole tensors, from what each rank returned."""
    tensors = {}
    _, records, first_tensors = results[0]
    for name, (first, sharded) in first_tensors.items():
        parts = [own[name][0] for *_, own in results]
        if not sharded:
            assert all(torch.equal(part, first) for part in parts), f"ranks differ in {name}"
        tensors[name] = torch.cat(parts) if sharded else first
    return records, tensors


def numbers(record):
    return {key: value for key, value in record.items() if key not in LEFT_OUT}


def together(cases, recipe, out):
    """Several runs, one after another, in one group of processes."""
    return {name: trained(recipe, given, out / name) for name, given in cases.items()}


def assert_same_records(records, expected):
    """A loss that no clip has is ``None``."""
    for record, wanted in zip(records, expected, strict=True):
        given = {key: value for key, value in wanted.items() if value is not None}
        missing = dict.fromkeys(wanted.keys() - given.keys())
        assert {key: record[key] for key in missing} == missing
        rest = {key: value for key, value in record.items() if key not in missing}
        assert rest == pytest.approx(given, rel=TOLERANCE)


def assert_same_tensors(tensors, expected, name):
    assert tensors.keys() == expected.keys()
    for key, tensor in expected.items():
        difference = (tensors[key] - tensor).abs().max() / tensor.abs().max().clamp(min=1)
        assert difference <= TOLERANCE, f"{name}: {key}"
