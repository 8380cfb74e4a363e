"""What a call of the op costs the host beyond its launcher.

The launcher is replaced by one that only hands out ready tensors, so that nothing but checks,
dispatch and the operator's boundary is timed; no GPU is needed. Two streams, no gradient.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace

import torch

import mbt_fast
from benchmarks.case import Case, Scope, Variant
from mbt_fast import dispatch
from mbt_fast.ops import bottleneck_attention as op

ROWS, SLOTS = (37, 21), 4


def cases(scope: Scope) -> Iterator[Case]:
    """One."""
    yield Case(
        name="boundary of the op",
        mode="forward",
        shape={"batch": 1, "rows": list(ROWS)},
        dtype=torch.float32,
        variants=variants,
        threads=1,
        around=ready_launcher,
    )


def variants() -> Mapping[str, Variant]:
    """The whole call, and the launcher in it."""
    streams = [torch.randn(1, rows, 3, 2, 64) for rows in ROWS]
    launch = op.import_launchers("triton").bottleneck_attention_fwd

    @torch.no_grad()
    def call() -> object:
        return mbt_fast.bottleneck_attention(streams, SLOTS, backend="triton")

    def launcher() -> object:
        return launch(streams, [None, None], SLOTS, False, 0.125)

    return {"call": Variant(run=call), "launcher": Variant(run=launcher)}


@contextmanager
def ready_launcher() -> Iterator[None]:
    """One backend, ``triton``, whose launcher does nothing."""
    outs = [torch.zeros(1, rows, 2, 64) for rows in ROWS]
    lses = [torch.zeros(1, 2, rows) for rows in ROWS]
    kept = [*(torch.zeros(2, 1, 2, rows) for rows in ROWS), torch.zeros(0)]

    def launcher(*call: object) -> tuple[list[torch.Tensor], ...]:
        return list(outs), list(lses), list(kept)

    original = dispatch.BACKENDS, op.import_launchers
    rows = (dispatch.Backend("triton", dispatch.EVERY),)
    dispatch.BACKENDS = rows  # type: ignore[assignment]
    op.import_launchers = lambda backend: SimpleNamespace(bottleneck_attention_fwd=launcher)
    try:
        yield
    finally:
        dispatch.BACKENDS, op.import_launchers = original
