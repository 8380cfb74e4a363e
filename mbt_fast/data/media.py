"""Media files as they are given, by path, content or file object, and what goes wrong with them."""

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

from mbt_fast.errors import ClipError

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer
    from av.rational import AVRational
    from av.stream import Stream

MediaFile: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO"

_OF_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ESTALE)
_DRAWS_TEXT = "tty"  # FFmpeg "decodes" any text file into pictures of a terminal
_NO_METADATA_ERRORS = 19  # PyAV from this version on always replaces what is not UTF-8


class Media:
    """A media file that can be opened several times, one time after the other.

    A file object is read from its beginning. One that cannot seek is read into memory. Neither it
    nor any other object of the caller is closed. As a context, it closes what ``keep`` keeps.

    Args:
        given: A path, the content of a file, or a binary file object.

    Raises:
        ClipError: There is no such file, or it is empty.
    """

    def __init__(self, given: MediaFile) -> None:
        """Name the file and check that there is something to read."""
        self._file: BinaryIO | None = None
        self._kept: InputContainer | None = None
        if isinstance(given, (bytes, bytearray, memoryview)):
            self.name = f"<{len(given)} bytes>"
            self._file = io.BytesIO(given)
        elif isinstance(given, (str, os.PathLike)):
            self.name = os.fsdecode(given)
            _check_path(self.name)
        else:
            self.name = str(getattr(given, "name", "<file object>"))
            with as_clip_error(self.name, "cannot be read"):
                self._file = given if given.seekable() else io.BytesIO(given.read())
        if self.size == 0:
            raise ClipError(f"{self.name}: the file is empty")

    def __enter__(self) -> "Media":
        """Close, at the end of a block, what is kept open."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close what is kept open."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    @property
    def size(self) -> int:
        """Its length in bytes."""
        if self._file is None:
            return os.path.getsize(self.name)
        with as_clip_error(self.name, "cannot be read"):
            return self._file.seek(0, os.SEEK_END)

    def head(self, size: int) -> bytes:
        """Its first ``size`` bytes."""
        if self._file is None:
            with open(self.name, "rb") as file:
                return file.read(size)
        self._file.seek(0)
        return self._file.read(size)

    def open(self) -> "InputContainer":
        """Open it with FFmpeg; the caller closes the container, or gives it to ``keep``.

        Raises:
            ClipError: It is not a media file.
        """
        import av

        if self._kept is not None:
            container, self._kept = self._kept, None
            return container

        options: dict[str, Any] = {}
        if int(av.__version__.split(".")[0]) < _NO_METADATA_ERRORS:
            options["metadata_errors"] = "replace"
        with as_clip_error(self.name, "not a readable media file"):
            if self._file is None:
                # The prefix keeps FFmpeg from taking a name with a colon for an address.
                container = av.open(f"file:{self.name}", **options)
            else:
                self._file.seek(0)
                container = av.open(self._file, mode="r", **options)
        if container.format.name == _DRAWS_TEXT:
            container.close()
            raise ClipError(f"{self.name}: not a readable media file (it is text)")
        return container

    def keep(self, container: "InputContainer") -> None:
        """Keep a container of which nothing has been read for the next ``open``.

        Opening is dear: FFmpeg decodes a frame to know the format.
        """
        self._kept = container


@contextmanager
def as_clip_error(name: str, problem: str) -> Iterator[None]:
    """Make of whatever goes wrong with a file one line about it.

    A damaged file makes PyAV raise ``IndexError``, ``ValueError`` and others besides its own
    errors, so all are caught.

    Args:
        name: The file.
        problem: What is wrong with the file if the block fails.

    Raises:
        ClipError: In place of any exception of the block that tells of the file.
    """
    try:
        yield
    except ClipError:
        raise
    except Exception as error:
        if is_of_machine(error):
            raise
        raise ClipError(f"{name}: {problem} ({reason(error)})") from error


def is_of_machine(error: Exception) -> bool:
    """Whether an exception says nothing of the file: memory or descriptors ran out, a disk failed.

    FFmpeg gives out of memory and input/output error for damaged files too; those are the file's.
    """
    from av import FFmpegError

    number = getattr(error, "errno", None)
    if isinstance(error, MemoryError) or number == errno.EIO:
        return not isinstance(error, FFmpegError)
    return number in _OF_MACHINE


def packets(container: "InputContainer", *streams: "Stream") -> "Iterator[Packet]":
    """The packets of some streams, or of all, and at last one without data for each.

    PyAV ends with an ``IndexError`` where a stream joined after it had read the header.
    """
    with suppress(IndexError):
        yield from container.demux(*streams)


def to_seconds(stamp: int | None, base: "Fraction | AVRational | None") -> Fraction | None:
    """A timestamp in seconds, or ``None`` where the file has none."""
    return None if stamp is None or not base else cast("Fraction", stamp * base)


def reason(error: Exception) -> str:
    """What an exception says, in one line."""
    stated = getattr(error, "strerror", None)  # of FFmpeg and of the operating system
    text = " ".join(str(stated or error).split())
    return text if stated else f"{type(error).__name__}: {text}".rstrip(": ")


def _check_path(path: str) -> None:
    with as_clip_error(path, "cannot be read"):
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise ClipError(f"{path}: no such file") from None
    if not stat.S_ISREG(mode):
        raise ClipError(f"{path}: not a file{' but a directory' if stat.S_ISDIR(mode) else ''}")
