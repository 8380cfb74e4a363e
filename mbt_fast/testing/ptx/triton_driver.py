"""A GPU that is not there, for Triton: its own binder, compiler and C launcher run as they are.

What is ours lies below them, in ``driver.c``, and around the launcher, where arguments are still
tensors. ``mbt_fast.testing.ptx.device`` is the way in.
"""

import ctypes
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver as drivers

from mbt_fast.testing.ptx.driver import LAUNCH_FAILED, SUCCESS, Shape, connect, load
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.launch import launch, pack
from mbt_fast.testing.ptx.memory import Memory
from mbt_fast.testing.ptx.parse import Module
from mbt_fast.testing.ptx.syntax import Kernel


class Launch(NamedTuple):
    """One launch of a Triton kernel, as the driver of a GPU would see it.

    Args:
        name: The kernel's.
        ptx: What Triton compiled; a launch with another text, made by ``_replace``, runs that.
        function: The driver's handle, one for each specialisation that a process has compiled.
        shape: Grid, block, cluster and dynamic shared memory.
        types: Triton's types of the arguments, by name, such as ``"*fp32"`` or ``"constexpr"``.
        arguments: The arguments, by name; they keep their tensors alive.
        parameters: The bytes of each parameter of the PTX, in its order.
    """

    name: str
    ptx: str
    function: int
    shape: Shape
    types: Mapping[str, Any]
    arguments: Mapping[str, Any]
    parameters: tuple[bytes, ...]

    def memory(self) -> Memory:
        """What the kernel may touch: the tensors among its arguments."""
        return Memory.of(*_tensors(self.arguments.values()))

    def run(self, seed: int | None = None) -> None:
        """Run the kernel on the CPU; it may touch ``memory()``, no more.

        Args:
            seed: Draws an order of the warps; ``None`` runs them in step.

        Raises:
            PtxError: The kernel does what PTX does not define, or what is not implemented.
        """
        if self.shape.cluster != (1, 1, 1):
            raise ValueError(f"cluster must be (1, 1, 1), got {self.shape.cluster}")
        kernel = _entry(self.ptx, self.name)
        grid, block, _, shared_bytes = self.shape
        parameters = pack(kernel, self.parameters)
        try:
            launch(
                kernel, grid, block, parameters, self.memory(), shared_bytes=shared_bytes, seed=seed
            )
        except PtxError as error:
            error.args = (f"{error}{_source_line(self.ptx, error.line)}",)
            raise


_LOADED: dict[int, tuple[str, str]] = {}  # name and PTX, by handle, which a process gives once
_CALL = threading.local()  # of the launcher that a thread is in: types, arguments, error


class Launcher(nvidia.CudaLauncher):
    """Triton's launcher, which also says which tensors it was given, and why a launch failed."""

    def __init__(self, src: Any, metadata: Any) -> None:
        """As Triton's."""
        super().__init__(src, metadata)
        self._types = dict(src.signature)

    def __call__(
        self, grid_x, grid_y, grid_z, stream, function, metadata, launch_metadata, enter, leave,
        *arguments,
    ) -> None:  # fmt: skip
        """Launch; an error of the executor is raised in place of the driver's."""
        _CALL.types, _CALL.error = self._types, None
        _CALL.arguments = dict(zip(self._types, arguments, strict=True))
        try:
            super().__call__(
                grid_x, grid_y, grid_z, stream, function, metadata, launch_metadata, enter, leave,
                *arguments,
            )  # fmt: skip
        except RuntimeError as refusal:
            raise (_CALL.error or refusal) from None
        finally:
            del _CALL.types, _CALL.arguments, _CALL.error


class Driver(nvidia.CudaDriver):
    """Triton's driver of NVIDIA GPUs, for CPU tensors.

    Its device has the number of its architecture, so that kernels of one are not taken for another.
    """

    def __init__(self, arch: int, run: Callable[[Launch], None] | None) -> None:
        """Record launches, and hand them to a function if there is one."""
        super().__init__()
        self.launches: list[Launch] = []
        self._arch, self._run = arch, run
        self.launcher_cls = Launcher
        self.get_current_device = lambda: arch
        self.set_current_device = lambda device: None
        self.get_current_stream = lambda device: 0
        self.get_device_capability = lambda device=arch: divmod(device, 10)

    def get_current_target(self) -> GPUTarget:
        """What Triton compiles for."""
        return GPUTarget("cuda", self._arch, 32)

    def get_active_torch_device(self) -> torch.device:
        """Where tensors are."""
        return torch.device("cpu")

    def take(self, launched: Launch) -> None:
        """Record a launch, and run it."""
        self.launches.append(launched)
        if self._run is not None:
            self._run(launched)


@contextmanager
def device(arch: int, run: Callable[[Launch], None] | None) -> Iterator[list[Launch]]:
    """See ``mbt_fast.testing.ptx.device``."""
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET must be unset: the interpreter compiles no PTX")
    library = load(str(nvidia.include_dirs[0]), Path(knobs.cache.dir, "mbt_fast"))
    connect(library, _on_launch)
    library.handle.cuCtxSetCurrent(ctypes.c_void_p(arch))  # not that of an earlier block
    before = drivers._active
    with knobs.nvidia.scope():
        knobs.nvidia.libcuda_path = str(library.folder)
        here = Driver(arch, run)
        knobs.runtime.kernel_load_end_hook.add(_on_load)
        drivers.set_active(here)
        try:
            yield here.launches
        finally:
            drivers.set_active(before)
            knobs.runtime.kernel_load_end_hook.remove(_on_load)


def _on_load(module: int, function: int, name: str, files: Mapping[str, str], hash: str) -> None:
    (path,) = (path for file, path in files.items() if file.endswith(".ptx"))
    _LOADED[function] = name, Path(path).read_text()


def _on_launch(function: int, shape: Shape, pointers: Any) -> int:
    """Called by the driver. An exception waits for ``Launcher``: C has no way for it."""
    try:
        name, ptx = _LOADED[function]
        sizes = [parameter.size for parameter in _entry(ptx, name).parameters.values()]
        parameters = tuple(ctypes.string_at(pointers[i], size) for i, size in enumerate(sizes))
        launched = Launch(name, ptx, function, shape, _CALL.types, _CALL.arguments, parameters)
        drivers.active.take(launched)
    except BaseException as error:  # KeyboardInterrupt, too
        _CALL.error = error
        return LAUNCH_FAILED
    return SUCCESS


@lru_cache(maxsize=64)
def _entry(ptx: str, name: str) -> Kernel:
    return Module(ptx)[name]


def _source_line(ptx: str, line: int) -> str:
    """Where in the Triton source a line of PTX comes from, if the text says so."""
    before = "\n".join(ptx.splitlines()[:line])
    places = re.findall(r"^\s*\.loc\s+(\d+)\s+(\d+)", before, re.MULTILINE)
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', ptx, re.MULTILINE))
    if not places or places[-1][0] not in files:
        return ""
    file, number = places[-1]
    return f"\nfrom {files[file]}:{number}"


def _tensors(arguments: Any) -> Iterator[Tensor]:
    """All tensors among arguments and in their tuples."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (tuple, list)):
            yield from _tensors(argument)
        elif isinstance(getattr(argument, "base", None), Tensor):  # a view or descriptor of Triton
            yield argument.base
