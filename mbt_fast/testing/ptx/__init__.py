"""Run compiled kernels without a GPU: an executor of PTX on the CPU.

Imported by name only: ``from mbt_fast.testing import ptx``. It needs numpy.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.launch import launch, pack
from mbt_fast.testing.ptx.memory import Memory
from mbt_fast.testing.ptx.parse import Module
from mbt_fast.testing.ptx.syntax import Kernel

if TYPE_CHECKING:  # which needs triton
    from mbt_fast.testing.ptx.triton_driver import Launch

__all__ = ["Kernel", "Memory", "Module", "PtxError", "device", "execute", "launch", "pack"]


def execute(launched: "Launch") -> None:
    """Run a launch on the CPU, all warps in step.

    Raises:
        PtxError: The kernel does what PTX does not define, or what is not implemented.
    """
    launched.run()


def device(
    arch: int = 80, *, run: "Callable[[Launch], None] | None" = execute
) -> "AbstractContextManager[list[Launch]]":
    """A GPU that is not there, for Triton: its kernels run on CPU tensors, as compiled PTX.

    Inside the ``with`` block any ``kernel[grid](...)`` goes through Triton's own binder, compiler
    and launcher, and then to ``run`` instead of a GPU. A kernel may touch what lies between the
    first and the last element of each tensor that it is given, and nothing else.

    Args:
        arch: What Triton compiles for: 80, or 90, which means ``sm_90a``.
        run: What is done with a launch. ``None`` only records it; another function may change its
            PTX first (``run=lambda launch: launch._replace(ptx=...).run()``), or draw an order of
            warps (``launch.run(seed)``).

    Returns:
        A context manager that gives the list of launches, each with name, PTX, shape, arguments and
        parameters. After the block Triton's driver is what it was before.

    Raises:
        ImportError: Triton is not installed.
        RuntimeError: ``TRITON_INTERPRET`` is set, there is no C compiler, or the process has used
            a GPU. A process that enters the block cannot use one afterwards.
        PtxError: From the launch: the kernel does what PTX does not define, or what is not
            implemented.

    Example:
        ::

            with ptx.device(90) as launches:
                kernel[(4,)](x, out, 100, TILE=128)
    """
    from mbt_fast.testing.ptx import triton_driver

    return triton_driver.device(arch, run)
