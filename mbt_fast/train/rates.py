"""How fast clips are read and how fast the model learns from them, measured for a few seconds."""

import os
import time
from dataclasses import dataclass

import torch

from mbt_fast.errors import InputError
from mbt_fast.profiling.machine import is_out_of_memory
from mbt_fast.profiling.timing import Deadline, timed
from mbt_fast.train import optimizer
from mbt_fast.train.losses import loss, soft_targets, target_shape
from mbt_fast.train.order import Key, epoch_order
from mbt_fast.train.parts import Parts

MAX_CLIPS = 32


@dataclass(frozen=True)
class Reading:
    """What reading clips takes.

    Args:
        seconds: Of one clip in one process.
        clips: How many were read.
        broken: How many could not be.
        workers: Processes that will read.
    """

    seconds: float
    clips: int
    broken: int
    workers: int

    @property
    def rate(self) -> float:
        """Clips a second of all workers, of which no more run at once than there are cores."""
        return max(1, min(self.workers, os.cpu_count() or 1)) / self.seconds


@dataclass(frozen=True)
class Learning:
    """What a step takes on clips that are there.

    Args:
        seconds: Of one step of the whole batch.
        batch_size: Its clips.
        at_a_time: Clips that were computed together.
    """

    seconds: float
    batch_size: int
    at_a_time: int

    @property
    def rate(self) -> float:
        """Clips a second."""
        return self.batch_size / self.seconds


def waiting_share(reading: Reading, learning: Learning) -> float:
    """Share of the time for which the model will wait for clips.

    Without workers it waits for each clip; with workers for what they are slower than the model.
    """
    if reading.workers == 0:
        return reading.seconds / (reading.seconds + 1 / learning.rate)
    return max(0.0, 1 - reading.rate / learning.rate)


def measure_reading(parts: Parts, seconds: float) -> Reading:
    """Read the first clips of an epoch from their files, one by one in this process.

    Raises:
        InputError: None of them can be read.
    """
    config, clips = parts.config, parts.clips()
    order = epoch_order(len(clips), config.train.seed, 0, clips.weights).tolist()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        keys = [Key(0, position, index) for position, index in enumerate(order[:MAX_CLIPS])]
        broken = len(clips[keys[0]].broken)  # the first one loads the libraries
        deadline, start, count = Deadline(seconds), time.perf_counter(), 0
        for key in keys:
            item = clips[key]
            if item.clip is None:
                raise InputError(
                    f"{clips.manifest.path}: no clip can be read: {item.broken[0].error}"
                )
            count, broken = count + 1, broken + len(item.broken)
            if deadline.left() < 0:
                break
        taken = time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    return Reading(taken / count, count, broken, config.data.workers)


def measure_learning(parts: Parts, seconds: float) -> Learning:
    """Take steps on noise: with one clip first, and with as many as the run will, if time allows.

    Weights change meanwhile.

    Raises:
        InputError: A step does not fit into memory.
    """
    train = parts.config.train
    most = train.micro_batch or train.batch_size // (train.virtual_devices or 1)
    steps, _ = optimizer.build(parts.model, train, parts.total_steps)
    parts.model.train()
    at_a_time = 1
    try:
        once = _seconds(parts, 1, seconds)
        if most > 1 and once * most < seconds:
            at_a_time = most
            once = _seconds(parts, most, seconds)
        steps.step()
        update = timed(steps.step, parts.device)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise InputError(
                f"train.micro_batch must fit into memory: {at_a_time} clips at a time do not"
            ) from error
        raise
    finally:
        steps.zero_grad()
    return Learning(train.batch_size / at_a_time * once + update, train.batch_size, at_a_time)


def _seconds(parts: Parts, count: int, seconds: float) -> float:
    """Of one gradient; of a second one if the first, which may compile something, was quick."""
    first = timed(lambda: _gradient(parts, count), parts.device)
    return first if first > seconds / 2 else timed(lambda: _gradient(parts, count), parts.device)


def _gradient(parts: Parts, count: int) -> None:
    """Forward and backward of some clips of noise."""
    device, names = parts.device, parts.data.names
    inputs = {
        modality: torch.randn(count, *shape, device=device)
        for modality, shape in parts.transform.shapes.items()
    }
    with parts.autocast():
        logits = parts.model.forward_modalities(inputs)
    task, heads = parts.config.train.task, parts.data.heads
    shape = target_shape(task, len(names), heads)
    targets = torch.zeros(count, *shape, dtype=torch.int64, device=device)
    soft = soft_targets(targets, task, len(names), heads)
    total, _ = loss(logits, soft, task=task, kind=parts.config.train.loss, heads=heads)
    total.backward()
