"""Which backend runs a call, and why: the public names of ``mbt_fast.ops.dispatch``."""

from mbt_fast.ops.dispatch import (
    BACKENDS,
    Backend,
    BackendError,
    Call,
    check_name,
    explain,
    format_table,
    implements,
    select,
    verdict,
)

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendError",
    "Call",
    "check_name",
    "explain",
    "format_table",
    "implements",
    "select",
    "verdict",
]
