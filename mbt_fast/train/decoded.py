"""Filling the cache of decoded clips, once, whoever asks for it first."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch.utils.data import BatchSampler, Dataset

from mbt_fast.checkpoint.files import replacing
from mbt_fast.data import Clip, ClipTransform, load_clip, read_window
from mbt_fast.data.manifest import Manifest
from mbt_fast.errors import ClipError, InputError, RunError
from mbt_fast.train.clip_cache import ClipCache, cache_key, write
from mbt_fast.train.loader import Loader

_PAUSE = 0.5  # seconds, while another process fills the cache


@dataclass(frozen=True)
class CentreWindows(Dataset["Clip | ClipError"]):
    """The centre window of each clip of a manifest, decoded when it is asked for.

    Args:
        manifest: The clips.
        transform: What the model takes.
        errors: As for ``load_clip``.
        whole: Read by ``load_clip``, which sees the whole file, instead of ``read_window``.
    """

    manifest: Manifest
    transform: ClipTransform
    errors: str = "strict"
    whole: bool = False

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.manifest)

    def __getitem__(self, row: int) -> Clip | ClipError:
        """Read a clip, or say why it cannot be read."""
        entry = self.manifest[row]
        try:
            read = partial(load_clip, n_views=1) if self.whole else read_window
            return read(
                entry.media,
                self.transform,
                start=entry.start,
                end=entry.end,
                pixels="uint8",
                errors=self.errors,
            )
        except ClipError as error:
            return error


def cached(
    windows: CentreWindows, folder: Path, *, workers: int, stop: Callable[[], bool]
) -> ClipCache | None:
    """The cache of some windows, made if need be.

    Args:
        windows: What is decoded.
        folder: Where caches are; it is made.
        workers: Processes that decode; 0 for this one.
        stop: Asked before each clip and while waiting; ``True`` ends the work and leaves no cache.

    Returns:
        The cache; ``None`` if it was stopped.

    Raises:
        InputError: The folder cannot be written, its disk is full, a disk fails, or the cache that
            is there is not whole, as a copy may be.
        RunError: A worker died, or clips cannot be read for a fault of the machine.
    """
    key = cache_key(windows.manifest, windows.transform, errors=windows.errors, whole=windows.whole)
    path = folder / f"{key}.safetensors"
    try:
        if not path.exists():  # or the folder need not be one that can be written
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(".lock"), stop) as mine:
                if mine and not path.exists():
                    _fill(path, windows, workers, stop)
    except OSError as error:
        raise InputError(
            f"data.cache must be a folder that can be filled, got {folder}: {error}"
        ) from error
    if not path.exists():
        return None
    cache = ClipCache(path, windows.transform)
    cache.check()
    return cache


class _Stopped(Exception):
    """It was asked to stop."""


def _fill(path: Path, windows: CentreWindows, workers: int, stop: Callable[[], bool]) -> None:
    from tqdm import tqdm

    for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed
        leftover.unlink()
    count = len(windows)
    batches = BatchSampler(range(count), 1, drop_last=False)
    loader = Loader(windows, batches, _only, workers=workers, stop=stop)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            clips = tqdm(
                _read(loader), total=count, unit="clip", desc="cached", leave=False, disable=None
            )
            if write(file, windows.transform, count, clips) < count:
                raise _Stopped
    except _Stopped:
        pass
    finally:
        loader.close()


def _read(loader: Loader) -> Iterator[Clip | ClipError]:
    """The clips; an error of the machine meanwhile is none of the cache."""
    try:
        yield from loader
    except OSError as error:
        raise RunError(f"clips for data.cache cannot be read: {error}") from error


def _only(items: list[Clip | ClipError]) -> Clip | ClipError:
    return items[0]


@contextmanager
def _locked(lock: Path, stop: Callable[[], bool]) -> Iterator[bool]:
    """Wait for the lock, and say whether it came; Windows has none, where two may fill at once."""
    try:
        import fcntl
    except ImportError:
        yield True
        return
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if stop():
                    yield False
                    return
                time.sleep(_PAUSE)
            else:
                yield True
                return
