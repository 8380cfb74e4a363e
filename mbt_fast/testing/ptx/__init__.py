"""Run compiled kernels without a GPU: an executor of PTX on the CPU.

Imported by name only: ``from mbt_fast.testing import ptx``. It needs numpy.
"""

from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.launch import launch, pack
from mbt_fast.testing.ptx.memory import Memory
from mbt_fast.testing.ptx.parse import Module
from mbt_fast.testing.ptx.syntax import Kernel

__all__ = ["Kernel", "Memory", "Module", "PtxError", "launch", "pack"]
