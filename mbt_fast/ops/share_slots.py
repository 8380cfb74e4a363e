"""``share_slots_``: the shared update of Eq. 9 alone, in place."""

from collections.abc import Sequence

from torch import Tensor

from mbt_fast.ops.checks import check_streams
from mbt_fast.ops.operator import Entries
from mbt_fast.ops.streams import write_mean_slots


def share_slots_(
    streams: Sequence[Tensor], n_bottlenecks: int, *, lengths: Entries | None = None
) -> None:
    """Write the mean of the slots over the present streams into every stream, in place (Eq. 9).

    Args:
        streams: ``M`` tensors ``[B, S_m, C]`` whose last ``P`` rows are the slots.
        n_bottlenecks: ``P``; 0 does nothing.
        lengths: ``M`` entries, each ``None`` or int32 or int64 ``[B]``; 0 means absent, and the
            slots of an absent stream take no part in the mean. They receive it all the same.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value is out of range; the message names it.
    """
    lengths = check_streams(streams, n_bottlenecks, lengths)
    if n_bottlenecks == 0 or len(streams) == 1:
        return
    write_mean_slots(streams, n_bottlenecks, lengths)
