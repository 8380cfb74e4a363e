"""Backend 'triton' on CPU tensors, launched into a device that is not there."""

from contextlib import contextmanager

from mbt_fast.kernels import table
from mbt_fast.ops import dispatch
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
