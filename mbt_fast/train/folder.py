"""The folder of a run: one process at a time, one configuration for ever."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mbt_fast.checkpoint.files import replacing
from mbt_fast.errors import InputError
from mbt_fast.train.config import TrainConfig

CONFIG_FILE = "config.toml"
LABELS_FILE = "labels.txt"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Make the folder, and keep other processes from training in it meanwhile.

    The system releases the lock of a process that is killed. Windows has no such lock.

    Raises:
        InputError: Another process trains there.
        OSError: The folder cannot be made or written.
    """
    run.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(run / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"out must be a folder of its own, got {run}, in use") from error
        yield
    finally:
        os.close(handle)


def check_same_config(run: Path, config: TrainConfig) -> None:
    """Refuse to go on with a run by another configuration.

    Raises:
        InputError: The folder holds such a run; names every value that differs.
    """
    file = run / CONFIG_FILE
    if not file.exists():
        return
    saved = TrainConfig.from_toml(file)
    before, now = saved.to_flat(), config.to_flat()
    differences = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in saved.differences(config)
    ]
    if differences:
        raise InputError(
            f"out must be a new folder or a run of the same configuration, got {run}, where "
            + "; ".join(differences)
        )


def write_config(run: Path, config: TrainConfig, names: tuple[str, ...]) -> None:
    """Write the resolved configuration and the class names."""
    with replacing(run / CONFIG_FILE) as temporary:
        temporary.write_text(config.to_toml(), encoding="utf-8")
    with replacing(run / LABELS_FILE) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
