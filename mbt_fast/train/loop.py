"""The training loop. Its state is one integer, the step, and what a checkpoint holds.

Everything drawn is a function of the seed and the step. So a run that was killed at any moment and
started again gives the same weights, bit for bit on a CPU, as one that never was.
"""

import math
from contextlib import ExitStack
from functools import partial
from os import PathLike
from pathlib import Path

import torch

from mbt_fast.errors import InputError, RunError
from mbt_fast.models.head import presence
from mbt_fast.parallel.data_parallel import wrap
from mbt_fast.parallel.ranks import Ranks, start
from mbt_fast.train import optimizer
from mbt_fast.train.averaging import Ema
from mbt_fast.train.config import TrainConfig
from mbt_fast.train.dataset import Batch, collate_items, rows
from mbt_fast.train.folder import check_same_config, locked, write_config
from mbt_fast.train.follower import Follower
from mbt_fast.train.gradients import MeanGradient, clip
from mbt_fast.train.loader import Loader
from mbt_fast.train.log import Record
from mbt_fast.train.losses import loss
from mbt_fast.train.means import MeanLosses, Meter
from mbt_fast.train.order import BatchKeys, generator, seed_of
from mbt_fast.train.parts import Parts, build_parts, read_data
from mbt_fast.train.recovery import last_whole
from mbt_fast.train.run import Outcome, Run
from mbt_fast.train.share import check_world, meet
from mbt_fast.train.state import TrainingState
from mbt_fast.train.stopping import Stopping


def train(config: TrainConfig, out: str | PathLike[str]) -> Outcome:
    """Train a model, or go on with a run that was stopped or killed.

    SIGTERM, SIGUSR1 and Ctrl-C end the run after the step, or in the score or the wait for clips,
    that they meet; it is saved then. Torch's random numbers are as before when it returns.

    Under torchrun, or in a group that was initialised before, every rank calls this. They share
    each batch, and the first one writes the folder; see ``mbt_fast.parallel.ranks.start``.

    Args:
        config: What to train, on what and how.
        out: Folder of the run. With the configuration that it holds, its run goes on.

    Returns:
        How it ended.

    Raises:
        InputError: A file, the configuration or the folder cannot be used.
        RunError: The run cannot go on: a loss is not finite, too many clips cannot be read, or
            another rank has failed.
        CheckpointError: A checkpoint cannot be written, and the last one is whole; or the run has
            checkpoints, and none is whole.
        OSError: The folder cannot be written.
    """
    with start(config.train.device) as ranks:
        check_world(config.train, ranks.world)
        return _train(config, Path(out), ranks)


def _train(config: TrainConfig, folder: Path, ranks: Ranks) -> Outcome:
    data = read_data(config)
    config = config.with_num_classes(len(data.names))
    check_same_config(folder, config)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(ranks.devices))
        last = ranks.share(last_whole(folder) if ranks.main else None)
        parts = build_parts(config, data, last.folder, ranks)
        if ranks.main:
            stack.enter_context(locked(folder))
            last.mend()
            write_config(folder, config, data.names)
        stop = stack.enter_context(Stopping())
        return stack.enter_context(Loop(parts, folder, stop)).train()


class Loop(ExitStack):
    """The steps of a run, from its last checkpoint to its end.

    Args:
        parts: The model and the clips.
        folder: Of the run.
        stop: Asked after each step, while its clips do not come, and while the model is scored.
    """

    def __init__(self, parts: Parts, folder: Path, stop: Stopping) -> None:
        """Go back to the last checkpoint, if there is one."""
        super().__init__()
        self.parts, self.stop, self.settings = parts, stop, parts.config.train
        self.ranks, apart = parts.ranks, self.settings.virtual_devices > 0
        how = self.settings.parallel
        self.wrapped = wrap(parts.model, self.ranks, how, parts.dtype, apart=apart)
        warmup = self.settings.total_warmup_steps(len(parts.data.train))
        self.optimizer, self.schedule = optimizer.build(
            parts.model, self.settings, parts.total_steps, warmup
        )
        self.augment, self.heads = parts.augment(), parts.data.heads
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        half = parts.dtype is torch.float16
        if half and self.settings.virtual_devices > 1:
            raise InputError("train.virtual_devices must be 0 with float16: it clips unscaled")
        self.scaler = torch.amp.GradScaler(parts.device.type, enabled=half)
        self.ema = Ema(parts.model, self.settings.ema) if self.settings.ema else None
        state = TrainingState(parts.model, self.optimizer, self.scaler, self.ema)
        run = Run if self.ranks.main else Follower
        self.run = self.enter_context(run(parts, state, folder))

    def train(self) -> Outcome:
        """Train until the end, or until it is to stop."""
        from tqdm import tqdm

        run, total = self.run, self.parts.total_steps
        meter = Meter(self.settings.batch_size, self.ranks.highest)
        run.score_if_due(self.stop)
        self.batches = batches = self._loader(run.step)
        silent = None if self.ranks.main else True
        with tqdm(total=total, initial=run.step, unit="step", disable=silent) as bar:
            while run.step < total:
                meter.start()
                self.ranks.at(f"step {run.step + 1}, clips")
                batch = meet(next(batches, None), self.stop, self.ranks)
                if batch is None:
                    break
                run.note_broken(batch)
                record = self._step(run.step, batch)
                meter.stop(batches.waited)
                run.advance(record, meter)
                bar.update()
                bar.set_postfix(loss=f"{record['loss']:.4g}", refresh=False)
                run.score_if_due(self.stop)
        self.stop.note(int(*self.ranks.highest([self.stop.number])))
        return run.finish(self.stop.signal)

    def _loader(self, start: int) -> Loader:
        """The batches of all steps from ``start`` on."""
        train, data, total = self.settings, self.parts.config.data, self.parts.total_steps
        cache = self.parts.cache(self.parts.data.train, self.stop) if start < total else None
        clips, ranks = self.parts.clips(cache), self.ranks
        keys = BatchKeys(
            len(clips),
            train.batch_size,
            train.seed,
            start,
            total,
            clips.weights,
            rank=ranks.rank,
            world=ranks.world,
        )
        pinned = self.parts.device.type == "cuda"
        collate = partial(collate_items, mask_padding=data.mask_padding)
        loader = Loader(clips, keys, collate, workers=data.workers, pinned=pinned, stop=self.stop)
        self.callback(loader.close)
        return loader

    def _step(self, step: int, batch: Batch) -> Record:
        """One step of the optimizer. Each virtual device mixes and clips by itself.

        Of several ranks each has whole virtual devices. Without them, each mixes its own clips, and
        the gradient of all is clipped.
        """
        optimizer.set_lr(self.optimizer, self.schedule(step))
        n_groups = self.settings.virtual_devices // self.ranks.world or 1
        groups = batch.to(self.parts.device).split(n_groups)
        self.losses, gradient = MeanLosses(), MeanGradient(self.parameters, n_groups)
        norms = []
        for number, group in enumerate(groups, start=self.ranks.rank * n_groups):
            self.optimizer.zero_grad()
            self._backward(step, number, group)
            self.scaler.unscale_(self.optimizer)
            norms.append(clip(self.parameters, self.settings.clip_norm))
            gradient.add()
        gradient.put()
        self.wrapped.complete(self.parameters)
        self.losses.add_mean("grad_norm", torch.stack(norms).mean())
        record = self.losses.read(self.ranks.total)
        self._check_finite(step, record, batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.parts.model)
        return record | {"lr": self.settings.lr * self.schedule(step)}

    def _backward(self, step: int, number: int, group: Batch) -> None:
        """Gradients of the mean loss over some clips, a micro-batch at a time."""
        train = self.settings
        size = train.micro_batch or len(group)
        draws = generator(train.seed, "augment", step, number)
        augmented = self.augment(group.inputs, group.targets, group.lengths, draws)
        self.parts.model.train()
        for first in range(0, len(group), size):
            inputs = rows(augmented.inputs, first, size)
            targets = rows(augmented.targets, first, size)
            lengths = rows(augmented.lengths or {}, first, size)
            torch.manual_seed(seed_of(train.seed, "layers", step, number, first))
            with self.wrapped.part(last=first + size == len(group)):
                self._at(step, "forward", group)
                with self.parts.autocast():
                    logits = self.wrapped(inputs, lengths)
                present = {m: p[:, 0] for m, p in presence(logits, list(inputs), lengths).items()}
                total, by_modality = loss(
                    logits,
                    targets,
                    task=train.task,
                    kind=train.loss,
                    smoothing=self.parts.config.augment.label_smoothing,
                    present=present,
                    heads=self.heads,
                )
                self._at(step, "backward", group)
                self.scaler.scale(total * size / len(group)).backward()
            self.losses.add(total, by_modality, present, size)

    def _check_finite(self, step: int, record: Record, batch: Batch) -> None:
        """Stop before a step that would make the weights meaningless.

        Raises:
            RunError: The loss is not finite, or, unless the scaler then skips the step, its
                gradient; names the clips.
        """
        watched = ["loss"] if self.scaler.is_enabled() else ["loss", "grad_norm"]
        for name in watched:
            if not math.isfinite(record[name]):
                own_is_finite = math.isfinite(self.losses.read()[name])
                whose = f" of rank {self.ranks.rank}" if self.ranks.world > 1 else ""
                told = self.ranks.exchange((own_is_finite, self._ids(batch) + whose))
                named = [ids for finite, ids in told if not finite] or [ids for _, ids in told]
                raise RunError(
                    f"{name} must be finite, got {record[name]} at step {step + 1} from the clips "
                    f"{', '.join(named)}"
                )

    def _at(self, step: int, what: str, batch: Batch) -> None:
        self.ranks.at(f"step {step + 1}, {what}", partial(self._ids, batch))

    def _ids(self, batch: Batch) -> str:
        return ", ".join(self.parts.data.train[index].id for index in batch.indices)
