"""Which rows of a stream an operation is about."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mbt_fast.ops.streams import valid_rows

Streams = dict[str, Tensor]  # modality -> [B, S_m, C]
Lengths = Mapping[str, Tensor]  # modality -> int32 [B]; a modality without padding has no entry
Rows = Sequence[int] | slice | None  # numbers, a range, or all of them


def take_rows(x: Tensor, rows: Rows) -> Tensor:
    """Some rows of ``[B, S, ...]``; a view, if they are one range."""
    if rows is None:
        return x
    if isinstance(rows, slice):
        return x[:, rows]
    parts = [x[:, row : row + 1] for row in rows]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def row_ranges(streams: Mapping[str, Tensor]) -> dict[str, slice]:
    """Where each stream's rows lie when all streams are joined."""
    ranges, start = {}, 0
    for modality, x in streams.items():
        ranges[modality] = slice(start, start + x.shape[1])
        start += x.shape[1]
    return ranges


def joint_valid(streams: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Tensor | None:
    """Which of the joined rows are valid: bool ``[B, sum of S_m]``, or ``None`` for all."""
    if not lengths:
        return None
    masks = []
    for modality, x in streams.items():
        valid = valid_rows(lengths.get(modality), x.shape[1], 0)
        masks.append(x.new_ones(x.shape[:2], dtype=torch.bool) if valid is None else valid)
    return torch.cat(masks, dim=1)
