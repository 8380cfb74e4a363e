"""Where a run goes on if its last checkpoint is corrupt: at the one before."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mbt_fast.checkpoint.checksums import check_checksums
from mbt_fast.checkpoint.runs import BEST, FOLDER, LATEST, named
from mbt_fast.errors import CheckpointError, InputError
from mbt_fast.train.checkpoints import point, step_of


@dataclass(frozen=True)
class LastWhole:
    """The newest whole checkpoint of a run.

    Args:
        run: Folder of the run.
        folder: The checkpoint; ``None`` if the run has none yet.
        corrupt: Those after it, with what is wrong with each; newest first.
        latest: What ``latest`` named when it was found.
    """

    run: Path
    folder: Path | None
    corrupt: Mapping[Path, str]
    latest: Path | None = None

    def mend(self) -> None:
        """Let ``latest`` name it, keep the corrupt ones under another name, and say so.

        The folder must be locked, as it need not be while the checkpoint is looked for.

        Raises:
            InputError: Another process has written a checkpoint since then.
            OSError: Something cannot be written or renamed.
        """
        from tqdm import tqdm

        if named(self.run, LATEST) != self.latest:
            raise InputError(
                f"out must be a folder of its own, got {self.run}, where another process has saved "
                "a checkpoint meanwhile; the same command goes on from it"
            )
        if self.folder is None or not self.corrupt:
            return
        step = step_of(self.folder)
        point(self.run, LATEST, step)
        if named(self.run, BEST) in self.corrupt:
            (self.run / BEST).unlink()  # the run names one again
        for folder, reason in self.corrupt.items():
            kept = _set_aside(folder)
            where = f"; kept as {kept.name}" if kept else ""
            tqdm.write(f"warning: the run goes on from step {step}: {reason}{where}")


def last_whole(run: Path) -> LastWhole:
    """Find the newest whole checkpoint, from the one that ``latest`` names on back.

    Nothing is changed. Every file of the checkpoint is read.

    Raises:
        CheckpointError: There are checkpoints, and none is whole.
        OSError: ``latest`` cannot be read.
    """
    corrupt: dict[Path, str] = {}
    latest = named(run, LATEST)
    for folder in _newest_first(run, latest):
        try:
            check_checksums(folder)
        except CheckpointError as error:
            corrupt[folder] = str(error)
        else:
            return LastWhole(run, folder, corrupt, latest)
    if corrupt:
        reasons = "; ".join(corrupt.values())
        raise CheckpointError(
            f"{run} must have a whole checkpoint to go on from, got none in {len(corrupt)}: "
            f"{reasons}; choose another folder to begin anew"
        )
    return LastWhole(run, None, {}, latest)


def _newest_first(run: Path, latest: Path | None) -> Iterator[Path]:
    """The checkpoint that ``latest`` names, there or not, and those before it."""
    folders = sorted(run.glob(f"{FOLDER}/step-*"), reverse=True)
    if latest is None:
        yield from folders
        return
    yield latest
    yield from (folder for folder in folders if folder < latest)


def _set_aside(folder: Path) -> Path | None:
    """Give what is left of a checkpoint a name that no run takes for one."""
    if not folder.exists():
        return None
    kept, number = folder.with_name(f"corrupt-{folder.name}"), 1
    while kept.exists():
        number += 1
        kept = folder.with_name(f"corrupt-{folder.name}-{number}")
    return folder.rename(kept)
