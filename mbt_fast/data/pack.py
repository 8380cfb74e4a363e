"""Pack the clips of a manifest into tar files, small and cheap to decode, with random access.

A shard has webdataset's layout: for each clip ``KEY.mp4`` and ``KEY.json``, one after the other.
Beside it lies an index with the place of each clip, which is written last: a shard that has one is
whole, and is not made again.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mbt_fast.data.entry import Entry
from mbt_fast.data.manifest import Manifest
from mbt_fast.data.rows import HEAD, write_rows
from mbt_fast.data.transcode import Recipe, transcode
from mbt_fast.errors import ClipError, InputError

_KEY = re.compile(r"[^A-Za-z0-9_-]")  # in a key; webdataset ends it at the first dot


@dataclass(frozen=True)
class Shard:
    """A shard to write.

    Args:
        manifest: The clips.
        rows: Which of them.
        path: The tar file.
        recipe: How clips are written.
    """

    manifest: Manifest
    rows: range
    path: Path
    recipe: Recipe

    @property
    def index_path(self) -> Path:
        """The index beside the tar file."""
        return self.path.with_suffix(".json")

    @property
    def origin(self) -> dict[str, Any]:
        """What the shard is made of, and how; with another origin it must be made again."""
        entries = "\n".join(repr(self.manifest[row]) for row in self.rows)
        rows = [self.rows.start, self.rows.stop]
        hash_of_rows = hashlib.sha256(entries.encode()).hexdigest()
        return {"rows": rows, "hash_of_rows": hash_of_rows, "recipe": asdict(self.recipe)}

    def read_index(self) -> dict[str, Any] | None:
        """The index, if the shard is whole.

        Raises:
            InputError: It was made of something else, or cannot be read.
        """
        if not (self.index_path.exists() and self.path.exists()):
            return None
        try:
            index = json.loads(self.index_path.read_text(encoding="utf-8"))
            same = index["origin"] == self.origin
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.index_path}: not the index of a shard") from error
        if not same:
            raise InputError(
                f"{self.index_path}: was made of other clips or in another way; choose another "
                "folder, or remove it"
            )
        return index


class Shards:
    """All shards of a manifest, in order.

    Args:
        manifest: The clips.
        folder: Where the shards are.
        recipe: How clips are written.
        clips: Number of clips in a shard; the last one may have fewer.
    """

    def __init__(self, manifest: Manifest, folder: Path, recipe: Recipe, clips: int) -> None:
        """Hold what the shards are made of."""
        self._manifest, self._folder = manifest, folder
        self._recipe, self._clips = recipe, clips

    def __len__(self) -> int:
        """Number of shards."""
        return -(-len(self._manifest) // self._clips)

    def __getitem__(self, index: int) -> Shard:
        """One shard."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, got {index}")
        first = index * self._clips
        rows = range(first, min(first + self._clips, len(self._manifest)))
        path = self._folder / f"{Path(self._manifest.path).stem}-{index:06d}.tar"
        return Shard(self._manifest, rows, path, self._recipe)

    def __iter__(self) -> Iterator[Shard]:
        """All of them."""
        return (self[index] for index in range(len(self)))


def write_shard(shard: Shard) -> dict[str, Any]:
    """Write a shard unless it is there; both of its files appear whole or not at all.

    Returns:
        Its index: ``clips`` with ``id``, ``offset``, ``size`` and labels, and ``broken`` with ids
        and reasons.

    Raises:
        InputError: The shard is there, but made of something else.
        OSError: It cannot be written.
    """
    index = shard.read_index()
    if index is not None:
        return index
    clips, broken = [], {}
    partial = shard.path.with_name(f"{shard.path.name}.partial")
    with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
        for row in shard.rows:
            entry = shard.manifest[row]
            try:
                content = transcode(entry, shard.recipe)
            except ClipError as error:
                broken[entry.id] = str(error)
                continue
            # The row makes keys differ where ids differ in signs that a key may not have.
            key = f"{row:08d}-{_KEY.sub('_', entry.id)}"
            offset = _add(tar, f"{key}.mp4", content)
            description = _describe(entry)
            text = json.dumps(description, ensure_ascii=False)
            _add(tar, f"{key}.json", text.encode())
            clips.append({**description, "offset": offset, "size": len(content)})
    index = {"shard": shard.path.name, "origin": shard.origin, "clips": clips, "broken": broken}
    os.replace(partial, shard.path)
    partial = shard.index_path.with_name(f"{shard.index_path.name}.partial")
    partial.write_text(json.dumps(index, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, shard.index_path)
    return index


def write_packed_manifest(path: Path, indices: Sequence[Mapping[str, Any]]) -> int:
    """Write the manifest of packed clips; return how many there are.

    Args:
        path: The ``.csv`` or ``.jsonl`` file, beside the shards.
        indices: Those of all shards.
    """
    rows = ({"path": index["shard"], **clip} for index in indices for clip in index["clips"])
    found = dict.fromkeys(name for index in indices for clip in index["clips"] for name in clip)
    heads = [name for name in found if name.startswith(HEAD)]
    columns = [name for name in ("labels", "verb", "noun", *heads) if name in found]
    return write_rows(path, rows, ("path", "id", *columns, "offset", "size"))


def _describe(entry: Entry) -> dict[str, Any]:
    """The id and the labels of a row, as far as it has them."""
    names = {"labels": list(entry.labels), "verb": entry.verb, "noun": entry.noun}
    names |= {HEAD + head: list(labels) for head, labels in entry.heads.items()}
    return {"id": entry.id, **{name: value for name, value in names.items() if value}}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a member; return where its content begins."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return tar.offset - padded
