"""Which backend runs a call, and why: the public name of ``mbt_fast.ops.dispatch``."""

from mbt_fast.ops.dispatch import BACKENDS, Backend, BackendError, Call, explain, select

__all__ = ["BACKENDS", "Backend", "BackendError", "Call", "explain", "select"]
