"""Names of the parts of a model in a trace of ``torch.profiler``."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.profiler import record_function


def named_range(name: str) -> AbstractContextManager:
    """A range of this name where a trace is taken, else nothing."""
    if torch.compiler.is_compiling() or not torch.autograd._profiler_enabled():
        return nullcontext()
    return record_function(name)
