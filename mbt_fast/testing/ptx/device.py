"""A GPU that is not there: Triton compiles and launches for it, and the executor computes.

Triton's own binder, compiler and C launcher run as they are. What is ours lies below them, in
``driver.c``, and around the launcher, where Python's arguments are still tensors.
"""

import ctypes
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver as active_driver

from mbt_fast.testing.ptx.driver import LAUNCH_FAILED, SUCCESS, Shape, connect, load

_WIDTHS = {"8": 1, "16": 2, "32": 4, "64": 8}


@dataclass(frozen=True, eq=False)
class Kernel:
    """What Triton has compiled and loaded: the name of the entry, and its module's text."""

    name: str
    ptx: str


@dataclass(frozen=True)
class Launch:
    """One call of ``cuLaunchKernelEx``.

    Args:
        kernel: What is launched.
        shape: Grid, block, cluster and dynamic shared memory.
        arguments: Of the Triton function, by name; keeps its tensors alive.
        types: Triton's types of the arguments, by name, such as ``"*fp32"`` or ``"constexpr"``.
        parameters: The bytes of each parameter, in the order of the entry's list.
    """

    kernel: Kernel
    shape: Shape
    arguments: Mapping[str, Any]
    types: Mapping[str, Any]
    parameters: tuple[bytes, ...]

    def windows(self) -> list[tuple[int, int]]:
        """Address and size of all memory that the kernel may touch: its tensors' storages."""
        return sorted(
            {(s.data_ptr(), s.nbytes()) for s in _storages(self.arguments.values()) if s.nbytes()}
        )


_KERNELS: dict[int, Kernel] = {}  # by the driver's handle, which a process gives once
_CALL = threading.local()  # arguments and types of the launcher that a thread is in; its error


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
        """Launch; an error of the executor is the caller's."""
        _CALL.types, _CALL.arguments, _CALL.error = self._types, arguments, None
        try:
            super().__call__(
                grid_x, grid_y, grid_z, stream, function, metadata, launch_metadata, enter, leave,
                *arguments,
            )  # fmt: skip
        except RuntimeError as refusal:
            raise (_CALL.error or refusal) from None
        finally:
            del _CALL.types, _CALL.arguments, _CALL.error


class Device(nvidia.CudaDriver):
    """Triton's driver of NVIDIA GPUs, for CPU tensors.

    Its device has the number of its architecture, so that kernels of one are not taken for another.
    """

    def __init__(self, arch: int, execute: bool) -> None:
        """Record launches, and execute them if asked to."""
        super().__init__()
        self.arch, self.execute = arch, execute
        self.launches: list[Launch] = []
        self.launcher_cls = Launcher
        self.get_current_device = lambda: arch
        self.set_current_device = lambda device: None
        self.get_current_stream = lambda device: 0
        self.get_device_capability = lambda device=arch: divmod(device, 10)

    def get_current_target(self) -> GPUTarget:
        """What Triton compiles for."""
        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        """Where tensors are."""
        return torch.device("cpu")


@contextmanager
def device(arch: int = 80, *, execute: bool = True) -> Iterator[list[Launch]]:
    """See ``mbt_fast.testing.ptx.device``."""
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET must be unset: the interpreter compiles no PTX")
    library = load(str(nvidia.include_dirs[0]), Path(knobs.cache.dir, "mbt_fast"))
    connect(library, _on_launch)
    before = active_driver._active
    with knobs.nvidia.scope():
        knobs.nvidia.libcuda_path = str(library.folder)
        here = Device(arch, execute)
        knobs.runtime.kernel_load_end_hook.add(_on_load)
        active_driver.set_active(here)
        try:
            yield here.launches
        finally:
            active_driver.set_active(before)
            knobs.runtime.kernel_load_end_hook.remove(_on_load)


def _on_load(module: int, function: int, name: str, files: Mapping[str, str], hash: str) -> None:
    (path,) = (path for file, path in files.items() if file.endswith(".ptx"))
    _KERNELS[function] = Kernel(name, Path(path).read_text())


def _on_launch(function: int, shape: Shape, pointers: Any) -> int:
    """Called by the driver. An exception waits for ``Launcher``: C has no way for it."""
    try:
        kernel = _KERNELS[function]
        parameters = tuple(
            ctypes.string_at(pointers[i], size) for i, size in enumerate(parameter_sizes(kernel))
        )
        arguments = dict(zip(_CALL.types, _CALL.arguments, strict=True))
        launch = Launch(kernel, shape, arguments, _CALL.types, parameters)
        here = active_driver.active
        here.launches.append(launch)
    except BaseException as error:  # KeyboardInterrupt, too
        _CALL.error = error
        return LAUNCH_FAILED
    return SUCCESS


def parameter_sizes(kernel: Kernel) -> list[int]:
    """Bytes of each parameter of the entry."""
    entry = kernel.ptx[kernel.ptx.index(f".entry {kernel.name}(") :]
    found = re.findall(r"\.param\s+\.[bsuf](\d+)", entry[: entry.index(")")])
    return [_WIDTHS[bits] for bits in found]


def _storages(arguments: Any) -> Iterator[torch.UntypedStorage]:
    """Of all tensors among arguments and in their tuples."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument.untyped_storage()
        elif isinstance(argument, (tuple, list)):
            yield from _storages(argument)
        elif isinstance(getattr(argument, "base", None), Tensor):  # a view or descriptor of Triton
            yield argument.base.untyped_storage()
