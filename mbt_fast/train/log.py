"""Records of a run, one JSON object in a line, and TensorBoard where it is installed.

A resumed run repeats the steps after its checkpoint. So the lines of these steps are removed before
it starts, and each step stands in the file once.
"""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from mbt_fast.checkpoint.files import replacing

Record = dict[str, Any]  # "step" is in every one


class Log:
    """A file of records that is only appended to.

    Args:
        path: The file. It is made if need be.
        step: Where the run starts: records of later steps are removed, and so is a last line that
            a killed process wrote in part.
        writes: Whether this process writes the file. Of several processes of a run one does.

    Raises:
        OSError: The file cannot be read or written.
    """

    def __init__(self, path: Path, step: int, writes: bool = True) -> None:
        """Read what is there and open the file for more."""
        self.path = path
        self._file: TextIO | None = None
        if not writes:
            return
        kept = [record for record in read(path) if record["step"] <= step]
        with replacing(path) as temporary:
            temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def records(self) -> list[Record]:
        """All that is in the file. They are not kept in memory: a long run has millions."""
        return read(self.path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record.

        Raises:
            OSError: The disk is full, or the file is gone; the error names it.
        """
        if self._file is None:
            return
        plain = {key: _finite(value) for key, value in record.items()}
        try:
            self._file.write(_line(plain))
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def sync(self) -> None:
        """Wait until the records are on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; what it could not hold, ``append`` has said."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


def read(path: Path) -> list[Record]:
    """The records of a file, without lines that are damaged.

    A killed process leaves a last line that is not whole, a power cut lines with zero bytes. They
    are of steps after the last checkpoint, which are made again.

    Raises:
        OSError: The file cannot be read; one that does not exist has no records.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # after the last line break stands a torn line
    return [record for record in map(_parsed, lines) if record is not None]


class TensorBoard:
    """Scalars of the records, for TensorBoard; nothing where it is not installed.

    Args:
        folder: Of its files.
        step: Where the run starts; later scalars of an earlier process are hidden.
        writes: As in ``Log``.
    """

    def __init__(self, folder: Path, step: int, writes: bool = True) -> None:
        """Open a file of events."""
        self._writer = None
        if writes and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, record: Mapping[str, Any]) -> None:
        """Write the numbers of a record, named after its kind."""
        if self._writer is None:
            return
        for key, value in record.items():
            if isinstance(value, (int, float)) and key not in ("step", "epoch"):
                self._writer.add_scalar(f"{record['kind']}/{key}", value, record["step"])

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


def _parsed(line: bytes) -> Record | None:
    try:
        record: Record = json.loads(line)
    except ValueError:
        return None
    return record


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity: a score that does not exist is ``null``."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
