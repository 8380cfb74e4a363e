"""What a run leaves in its folder: records, checkpoints, scores and a report."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import ClassVar, NamedTuple

from mbt_fast.checkpoint.checksums import check_checksums
from mbt_fast.checkpoint.files import read_safetensors
from mbt_fast.checkpoint.pretrained import WEIGHTS_FILE
from mbt_fast.checkpoint.runs import BEST, find_checkpoint, read_record
from mbt_fast.data.manifest import Manifest
from mbt_fast.errors import RunError
from mbt_fast.parallel.data_parallel import share_like, whole
from mbt_fast.train import checkpoints, report
from mbt_fast.train.averaging import average
from mbt_fast.train.broken import BrokenClips
from mbt_fast.train.dataset import ATTEMPTS, Batch
from mbt_fast.train.evaluate import evaluate
from mbt_fast.train.log import Log, Record, TensorBoard
from mbt_fast.train.means import Meter
from mbt_fast.train.parts import Parts
from mbt_fast.train.state import TrainingState

_ALARM = (
    "warning: the model predicts the same for every clip; often the learning rate is too high, or "
    "labels and clips do not belong together"
)
_REPORT_PAUSE = 20  # drawing takes a second or two, and is to take little of a run's time
BEST_SCORE = {"multilabel": "mAP", "single": "top1", "verb_noun": "action", "multitask": "top1"}


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        step: Steps made.
        total: Steps of the whole run.
        stopped_by: Name of the signal that ended it early, or ``None``.
        scores: The last record of scores; empty without any.
    """

    step: int
    total: int
    stopped_by: str | None = None
    scores: Record = field(default_factory=dict)

    def __str__(self) -> str:
        """One line."""
        done = f"step {self.step} of {self.total}"
        if self.stopped_by:
            return f"stopped by {self.stopped_by} at {done}; the same command resumes"
        return report.line(done, self.scores)


class Evaluation(NamedTuple):
    """A score that is due.

    Args:
        split: ``"val"`` or ``"test"``, for the record.
        manifest: Its clips.
        views: Windows of a clip.
    """

    split: str
    manifest: Manifest
    views: int


class Run(ExitStack):
    """A run in its folder.

    Args:
        parts: The model and the clips.
        state: What checkpoints hold.
        folder: Of the run.

    Attributes:
        step: Steps made.
        log: Records of training and of scores.
        scores: Those of scores.

    Raises:
        CheckpointError: The last checkpoint cannot be read.
        InputError: It is of other clips or classes.
    """

    writes: ClassVar[bool] = True  # whether this process writes the folder

    def __init__(self, parts: Parts, state: TrainingState, folder: Path) -> None:
        """Go back to the last checkpoint, if there is one."""
        super().__init__()
        self.parts, self.state, self.folder, self.config = parts, state, folder, parts.config
        self._tidy()
        last = parts.ranks.share(find_checkpoint(folder) if self.writes else None)
        if last is not None:
            parts.check_same_data(read_record(last), folder)
            state.read(last)
        self.step = 0 if last is None else checkpoints.step_of(last)
        step, limit, writes = self.step, self.config.data.broken_limit, self.writes
        self.log = Log(folder / "log.jsonl", step, writes)
        scores = [record for record in self.log.records() if record["kind"] == "eval"]
        self.scores: list[Record] = parts.ranks.share(scores)
        clips = parts.data.train
        self.broken = BrokenClips(folder / "broken.jsonl", step, clips, limit, writes)
        self.tensorboard = TensorBoard(folder / "tensorboard", step, writes)
        for part in (self.log, self.broken, self.tensorboard):
            self.callback(part.close)
        self._saved = self.step
        self._next_report = 0.0
        self._point_to_best()  # of a run that was killed right after the score

    def note_broken(self, batch: Batch) -> None:
        """Take down the clips that the coming step could not have.

        Raises:
            RunError: They are too many, or there are no others; what was done is saved.
        """
        try:
            self.broken.note(batch.broken, self.step + 1)
            if not batch.inputs:
                raise RunError(
                    f"a batch must have clips that can be read, got {ATTEMPTS} in a row that "
                    f"cannot; {self.broken.path} lists them: {batch.broken[0].error}"
                )
        except RunError:
            self.save()
            self.parts.ranks.wait()  # the first error ends the others, in the midst of a checkpoint
            raise

    def advance(self, record: Record, meter: Meter) -> None:
        """Take down a step that was made, and save if it is time."""
        self.step += 1
        if self.step % self.config.train.log_every == 0:
            self._write({"kind": "train", **self._place(), **record, **meter.read()})
        if self.step == self.parts.total_steps:
            self._average_last()
        every = self.config.checkpoint.every_steps
        if self.step % every == 0 or self.step in self._averaged_steps():
            self.save()

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one.

        Raises:
            CheckpointError: It cannot be written; the one before is whole.
        """
        if self.step == self._saved:
            return
        self.parts.ranks.at(f"step {self.step}, checkpoint")
        self._write_checkpoint()
        self._saved = self.step

    def score_if_due(self, stop: Callable[[], bool]) -> None:
        """Score the weights of this step, if it is time and the log does not say that it is done.

        A score that is cut short leaves no record: it is made again when the run goes on.
        """
        for evaluation in self._due():
            self.save()
            self.parts.ranks.at(f"step {self.step}, score")
            record = self._score(evaluation, stop)
            if record is None:
                return
            self._write(record)
            self.scores.append(record)
            self._say(report.line(f"step {self.step}", record))
            if record["constant"]:
                self._say(_ALARM)
            self._point_to_best()
            if time.monotonic() > self._next_report:
                self.write_report()

    def finish(self, stopped_by: str | None) -> Outcome:
        """Save what is not saved, and say how the run ended."""
        self.save()
        self.write_report()
        done = self.step == self.parts.total_steps and not self._due()
        last = self.scores[-1] if self.scores else {}
        return Outcome(self.step, self.parts.total_steps, None if done else stopped_by, last)

    def write_report(self) -> None:
        """Write the page with curves, from the records."""
        start = time.monotonic()
        path = self.folder / "report.html"
        report.write(path, self.config, self.log.records(), self.broken.records())
        end = time.monotonic()
        self._next_report = end + _REPORT_PAUSE * (end - start)

    def _due(self) -> list[Evaluation]:
        """The scores of this step that the log does not have."""
        data, options = self.parts.data, self.config.eval
        last = self.step == self.parts.total_steps
        every = options.every_epochs * self.parts.steps_per_epoch
        wanted = []
        if every and self.step and (last or self.step % every == 0) and data.val:
            wanted.append(Evaluation("val", data.val, options.epoch_views))
        final = data.test or data.val
        if last and final:
            wanted.append(Evaluation("test" if data.test else "val", final, options.views))
        if not wanted:  # at most steps
            return []
        have = {(record["step"], record["split"], record["views"]) for record in self.scores}
        return [
            evaluation
            for evaluation in dict.fromkeys(wanted)  # both may be the same
            if (self.step, evaluation.split, evaluation.views) not in have
        ]

    def _score(self, evaluation: Evaluation, stop: Callable[[], bool]) -> Record | None:
        parts, options = self.parts, self.config
        one = evaluation.views == 1
        cache = parts.cache(evaluation.manifest, stop, whole=True) if one else None
        with self.state.scored():
            result = evaluate(
                parts.model,
                evaluation.manifest,
                parts.transform,
                task=options.train.task,
                names=parts.data.names,
                views=evaluation.views,
                batch_size=options.eval.batch_size or options.train.batch_size,
                workers=options.data.workers,
                device=parts.device,
                dtype=parts.dtype,
                mask_padding=options.data.mask_padding,
                errors=options.data.errors,
                broken_limit=options.data.broken_limit,
                cache=cache,
                stop=stop,
                ranks=parts.ranks,
            )
        if result is None:
            return None
        return {"kind": "eval", **self._place(), "split": evaluation.split, **result}

    def _tidy(self) -> None:
        checkpoints.remove_leftovers(self.folder)

    def _write(self, record: Record) -> None:
        self.log.append(record)
        self.tensorboard.add(record)

    def _write_checkpoint(self) -> None:
        self.log.sync()
        self.broken.sync()
        record = {**self._place(), **self.parts.record()}
        checkpoints.save(self.folder, self.step, lambda to: self.state.write(to, record))
        self._prune()

    def _say(self, text: str) -> None:
        from tqdm import tqdm

        tqdm.write(text)

    def _place(self) -> Record:
        """Where the run is; an epoch is counted from 1."""
        return {"step": self.step, "epoch": -(-self.step // self.parts.steps_per_epoch)}

    def _averaged_steps(self) -> list[int]:
        """The steps whose weights are averaged at the end: each ends an epoch, the last the run."""
        n_epochs, every = self.config.train.average_last, self.parts.steps_per_epoch
        last = self.parts.total_steps
        return [last, *range((last - 1) // every * every, 0, -every)][:n_epochs]

    def _average_last(self) -> None:
        """Give the model the mean of the weights after each of the last epochs."""
        before = sorted(self._averaged_steps())[:-1]
        if not before:
            return
        with self.state.scored():
            own = {n: whole(t).clone() for n, t in self.parts.model.state_dict().items()}
        folders = [checkpoints.folder_of(self.folder, step) for step in before]
        for folder in folders:
            check_checksums(folder)
        states = chain((read_safetensors(folder / WEIGHTS_FILE) for folder in folders), [own])
        mean = average(states)
        self.parts.model.load_state_dict(share_like(mean, self.parts.model.state_dict()))
        self.state.ema = None
        self.parts.ranks.wait()  # until all have read what is now removed

    def _prune(self) -> None:
        averaged = [] if self.step == self.parts.total_steps else self._averaged_steps()
        checkpoints.prune(self.folder, self.config.checkpoint.keep, averaged)

    def _point_to_best(self) -> None:
        """Let ``best`` name the checkpoint with the best score of all that were made alike."""
        options, name = self.config.eval, BEST_SCORE[self.config.train.task]
        alike = ("val", options.epoch_views)
        scores = [
            (record[name], -record["step"])
            for record in self.scores
            if (record["split"], record["views"]) == alike and record[name] is not None
        ]
        if scores and self.config.checkpoint.best:
            step = -max(scores)[1]
            if checkpoints.folder_of(self.folder, step).is_dir():
                checkpoints.point(self.folder, BEST, step)
            self._prune()
