"""A media file that is a part of a larger file, such as a member of a tar."""

import io
import os
from typing import Any

from mbt_fast.data.media import as_clip_error
from mbt_fast.errors import ClipError


class PackedFile(io.RawIOBase):
    """Some bytes of a file, read as a file of their own.

    It has a descriptor of its own and closes it when nobody refers to it any more.

    Args:
        path: The whole file.
        offset: Where the bytes begin.
        size: How many there are.
        name: What messages call it.

    Raises:
        ClipError: The file cannot be opened, or ends before these bytes do.
    """

    def __init__(self, path: str, offset: int, size: int, name: str) -> None:
        """Open the whole file."""
        self.name = name
        self._offset, self._size = offset, size
        self._position = 0
        self._descriptor = -1
        with as_clip_error(name, "cannot be opened"):
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            length = os.fstat(self._descriptor).st_size
        if length < offset + size:
            raise ClipError(f"{name}: lies beyond the end of {path}, which was cut off")

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read from anywhere."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as there are bytes; return how many."""
        view = memoryview(buffer)
        wanted = min(len(view), max(self._size - self._position, 0))
        data = os.pread(self._descriptor, wanted, self._offset + self._position)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position in the packed file and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"position must be at least 0, got {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def close(self) -> None:
        """Close the descriptor; twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()
