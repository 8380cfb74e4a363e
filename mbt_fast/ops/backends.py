"""An op on every backend of the dispatch table."""

from mbt_fast.ops.dispatch import KERNELS, REFERENCE, STOCK, Backend
from mbt_fast.ops.operator import Implementation, Operator


def on_every_backend(
    op: Operator, *, stock: Implementation, reference: Implementation
) -> dict[Backend, Implementation]:
    """The implementations of an op, by row of the dispatch table.

    Args:
        op: Its operators are registered for every kernel backend that has launchers for it.
        stock: On torch's own fastest functions.
        reference: What the op means.
    """
    kernels = {
        row: op.register(
            row.name,
            getattr(row.launchers, f"{op.name}_fwd"),
            getattr(row.launchers, f"{op.name}_bwd"),
        )
        for row in KERNELS
        if op.name in row.ops
    }
    return {**kernels, STOCK: stock, REFERENCE: reference}
