"""A row of a manifest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from mbt_fast.data.packed import PackedFile


@dataclass(frozen=True)
class Entry:
    """One row of a manifest.

    Args:
        path: The media file, absolute.
        id: What the row is called in results; no other row has it.
        start: Where in the file the clip begins, in seconds; ``None`` is the file's beginning.
        end: Where it ends; ``None`` is the file's end.
        labels: Names, or indices as text; none, one or several.
        verb: Its verb, for data with verbs and nouns.
        noun: Its noun.
        offset: Where in ``path`` the media file begins, in bytes, if ``path`` is a packed shard.
        size: How many bytes of the shard it has.
        heads: Labels by head, for data with several: those of the columns ``labels.HEAD``.
    """

    path: str
    id: str
    start: float | None = None
    end: float | None = None
    labels: tuple[str, ...] = ()
    verb: str | None = None
    noun: str | None = None
    offset: int | None = None
    size: int | None = None
    heads: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    @property
    def media(self) -> str | BinaryIO:
        """What ``read_window`` and ``load_clip`` take: the path, or a part of the shard.

        Raises:
            ClipError: The shard cannot be opened, or is cut off.
        """
        if self.offset is None or self.size is None:
            return self.path
        name = f"{self.path}!{self.id}"
        return cast(BinaryIO, PackedFile(self.path, self.offset, self.size, name))
