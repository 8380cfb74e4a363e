"""Backend 'triton' on CPU tensors, launched into a device that is not there.

A file of tests that imports this is skipped where it cannot be.
"""

from contextlib import contextmanager

import pytest
import torch

from mbt_fast.ops import dispatch

pytest.importorskip("triton", reason="triton is not installed")
if dispatch.INTERPRET:
    pytest.skip("TRITON_INTERPRET=1 replaces the compiler", allow_module_level=True)
if torch.cuda.is_available():
    pytest.skip("this process has a true driver", allow_module_level=True)

from mbt_fast.kernels import table
from mbt_fast.testing import ptx


@contextmanager
def triton_device(monkeypatch, arch, run=ptx.execute):
    """Let 'triton' take CPU tensors, with the tiles of an architecture; gives the launches."""
    (row,) = (row for row in dispatch.BACKENDS if row.name == "triton")
    with monkeypatch.context() as patch, ptx.device(arch, run=run) as launches:
        patch.setitem(vars(row), "device_type", "cpu")
        patch.setattr(dispatch, "_CANDIDATES", {})
        patch.setattr(table, "arch_of", lambda tensor: arch)
        yield launches
