"""Clips that were decoded once, in a file that any number of processes reads.

It is a safetensors file with a row for each row of the manifest: ``rgb`` uint8 and ``spectrogram``
float32, zeros where a clip has none. ``records`` has what else is known of each clip, as JSON, from
``offsets[row]`` to ``offsets[row + 1]``: the fields of ``Clip``, or why it cannot be read.
"""

import hashlib
import json
import math
import os
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mbt_fast.checkpoint.files import read_safetensors
from mbt_fast.data.clip import Clip
from mbt_fast.data.manifest import Manifest
from mbt_fast.data.transform import ClipTransform
from mbt_fast.errors import CheckpointError, ClipError, InputError

_HEADER = 4096  # bytes before the tensors; safetensors allows spaces at its end
_DTYPES = {"offsets": "I64", "spectrogram": "F32", "rgb": "U8", "records": "U8"}  # in this order
_BYTES = {"I64": 8, "F32": 4, "U8": 1}
_OF_INPUTS = {"rgb": torch.uint8, "spectrogram": torch.float32}


class ClipCache:
    """The clips of a file that ``write`` wrote, one view each.

    Args:
        path: The file.
        transform: With which the clips were read.
    """

    def __init__(self, path: Path, transform: ClipTransform) -> None:
        """Hold what is needed; the file is opened by the process that reads it."""
        self.path, self.transform = path, transform
        self._tensors: dict[str, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Another process maps the file itself."""
        return {**self.__dict__, "_tensors": None}

    def __getitem__(self, row: int) -> Clip:
        """The clip of a row; its inputs are parts of the file and must not be changed.

        Raises:
            ClipError: The clip could not be read when the cache was made.
            CheckpointError, OSError: The cache itself cannot be read.
        """
        tensors = self._mapped()
        begin, end = tensors["offsets"][row : row + 2].tolist()
        record = json.loads(bytes(tensors["records"][begin:end].numpy()))
        if "error" in record:
            raise ClipError(record["error"])
        return Clip(
            path=record["path"],
            transform=self.transform,
            inputs={m: tensors[m][row : row + 1] for m in record["starts"]},
            duration=record["duration"],
            formats=record["formats"],
            starts={m: tuple(starts) for m, starts in record["starts"].items()},
            lengths={m: torch.tensor(n, dtype=torch.int32) for m, n in record["lengths"].items()},
            skipped=record["skipped"],
            faults=tuple(record["faults"]),
        )

    def check(self) -> None:
        """Refuse a file that is not whole.

        Raises:
            InputError: It is cut off, or not of safetensors.
            OSError: It cannot be read.
        """
        try:
            self._mapped()
        except CheckpointError as error:
            raise InputError(f"data.cache must hold whole files; remove {error}") from error

    def _mapped(self) -> dict[str, Tensor]:
        if self._tensors is None:
            self._tensors = read_safetensors(self.path)
        return self._tensors


def write(
    file: BinaryIO, transform: ClipTransform, count: int, clips: Iterable[Clip | ClipError]
) -> int:
    """Write clips as they come.

    Args:
        file: An empty file that can seek.
        transform: With which they are read.
        count: How many rows the file gets.
        clips: In the order of the rows: one view each, frames in uint8; or why there is none.

    Returns:
        The number of clips that came; if it is not ``count``, the file is not whole.

    Raises:
        OSError: The disk is full or fails.
    """
    shapes = transform.shapes
    begins = _begins(shapes, count)
    records, offsets = bytearray(), array("q", [0])
    for row, clip in enumerate(clips):
        records += json.dumps(_record(clip)).encode()
        offsets.append(len(records))
        for modality, view in clip.inputs.items() if isinstance(clip, Clip) else ():
            if (view.dtype, view.shape) != (_OF_INPUTS[modality], (1, *shapes[modality])):
                raise ValueError(
                    f"{modality} must be one view as it is cached, got {view.dtype} of shape "
                    f"{list(view.shape)}"
                )
            data = view.numpy().tobytes()
            file.seek(_HEADER + begins[modality] + row * len(data))
            file.write(data)
    file.seek(_HEADER + begins["records"])
    file.write(records)
    file.seek(_HEADER + begins["offsets"])
    file.write(offsets)
    file.seek(0)
    file.write(_header(shapes, begins, count, len(records)))
    file.flush()
    os.fsync(file.fileno())
    return len(offsets) - 1


def cache_key(manifest: Manifest, transform: ClipTransform, *, errors: str, whole: bool) -> str:
    """What decoded clips depend on, as hexadecimal digits: entries, files, and how they are read.

    Labels do not count. A file counts by its size, the time of its last change, and whether it may
    be read.

    Args:
        manifest: The clips.
        transform: What is taken of them.
        errors: As for ``load_clip``.
        whole: Read by ``load_clip``, not by ``read_window``.
    """
    import av

    how = {"transform": asdict(transform), "errors": errors, "whole": whole}
    how |= {"mbt_fast": version("mbt-fast"), "av": av.__version__}
    digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
    path, state = "", (0, 0, False)
    for entry in manifest:
        if entry.path != path:  # segments of a file stand together
            path, state = entry.path, _state(entry.path)
        place = (entry.id, entry.start, entry.end, entry.offset, entry.size)
        digest.update(repr((path, *state, *place)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _state(path: str) -> tuple[int, int, bool]:
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1, False
    return found.st_size, found.st_mtime_ns, os.access(path, os.R_OK)


def _record(clip: Clip | ClipError) -> dict[str, Any]:
    if isinstance(clip, ClipError):
        return {"error": str(clip)}
    return {
        "path": clip.path,
        "duration": clip.duration,
        "formats": dict(clip.formats),
        "starts": dict(clip.starts),
        "lengths": {modality: length.tolist() for modality, length in clip.lengths.items()},
        "skipped": clip.skipped,
        "faults": clip.faults,
    }


def _begins(shapes: Mapping[str, tuple[int, ...]], count: int) -> dict[str, int]:
    """Where each tensor begins behind the header, in bytes."""
    begins, end = {}, 0
    for name, dtype in _DTYPES.items():
        if name in shapes or name not in _OF_INPUTS:
            begins[name] = end
            size = count + 1 if name == "offsets" else count * math.prod(shapes.get(name, ()))
            end += _BYTES[dtype] * size
    return begins


def _header(
    shapes: Mapping[str, tuple[int, ...]], begins: Mapping[str, int], count: int, records: int
) -> bytes:
    extents = {name: [count, *shape] for name, shape in shapes.items()}
    extents |= {"offsets": [count + 1], "records": [records]}
    entries = {
        name: {
            "dtype": _DTYPES[name],
            "shape": extents[name],
            "data_offsets": [begin, begin + _BYTES[_DTYPES[name]] * math.prod(extents[name])],
        }
        for name, begin in begins.items()
    }
    size = _HEADER - 8
    return size.to_bytes(8, "little") + json.dumps(entries).encode().ljust(size)
