"""An op on every backend of the dispatch table."""

from mbt_fast.ops.dispatch import KERNELS, REFERENCE, STOCK
from mbt_fast.ops.operator import Implementation, Operator


def on_every_backend(
    op: Operator, *, stock: Implementation, reference: Implementation
) -> dict[str, Implementation]:
    """The implementations of an op, by name of their row in the dispatch table.

    Args:
        op: Its operators are registered for every kernel backend that has launchers for it.
        stock: On torch's own fastest functions.
        reference: What the op means.
    """
    kernels = {
        row.name: op.register(
            row.name,
            getattr(row.launchers, f"{op.name}_fwd"),
            getattr(row.launchers, f"{op.name}_bwd"),
        )
        for row in KERNELS
        if op.name in row.ops
    }
    return {**kernels, STOCK.name: stock, REFERENCE.name: reference}
