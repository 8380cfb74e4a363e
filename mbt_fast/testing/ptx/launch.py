"""Launch a kernel on the CPU."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from mbt_fast.testing.ptx.blocks import Blocks, Launch
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.memory import Memory
from mbt_fast.testing.ptx.parse import Module
from mbt_fast.testing.ptx.registry import Run, runnable
from mbt_fast.testing.ptx.schedule import run
from mbt_fast.testing.ptx.syntax import Kernel

THREADS_AT_ONCE = 4096
SHARED_AT_ONCE = 64 << 20


def launch(
    kernel: Kernel | str,
    grid: Sequence[int],
    block: Sequence[int],
    parameters: bytes | Sequence[Any],
    memory: Memory,
    *,
    shared_bytes: int = 0,
    seed: int | None = None,
) -> None:
    """Run all blocks of a kernel.

    Args:
        kernel: An entry of a ``Module``, or the PTX text of the only one.
        grid: Blocks along x, y and z; missing ones are 1.
        block: Threads of a block along x, y and z.
        parameters: The parameters as bytes, laid out as ``kernel.parameters`` says, or a value for
            each: an integer, a float or, for a pointer, an address.
        memory: What the kernel may touch.
        shared_bytes: Size of the extern shared array ("dynamic shared memory").
        seed: ``None`` runs warps in step; a number draws an order of warps, see ``schedule.run``.

    Raises:
        PtxError: The kernel does something that is not defined or not implemented; names line and
            thread.
        ValueError: The launch does not fit the kernel.
    """
    kernel = _only_kernel(kernel) if isinstance(kernel, str) else kernel
    grid3, block3 = _three(grid, "grid"), _three(block, "block")
    if kernel.threads is not None and block3 != kernel.threads:
        raise ValueError(f"block must be {kernel.threads}, as .reqntid says, got {block3}")
    packed = parameters if isinstance(parameters, bytes) else pack(kernel, parameters)
    if len(packed) != kernel.parameter_bytes:
        raise ValueError(f"parameters must have {kernel.parameter_bytes} bytes, got {len(packed)}")
    code = _compiled(kernel)
    values = _aligned(packed)
    known = Memory(memory.spans)
    constants = {
        name: known.add(_aligned(v.initial or bytes(v.size)))
        for name, v in kernel.constants.items()
        if v.size
    }
    address = known.add(values) if values.size else 0
    call = Launch(kernel, grid3, block3, values, address, constants, known, shared_bytes)
    total = grid3[0] * grid3[1] * grid3[2]
    size = _blocks_at_once(call)
    for start in range(0, total, size):
        run(Blocks(call, np.arange(start, min(start + size, total))), code, seed)


def pack(kernel: Kernel, values: Iterable[Any]) -> bytes:
    """Values as the bytes of the parameters; floats are taken as float32 or float64 by size.

    Raises:
        ValueError: There are more or fewer values than parameters.
    """
    given = list(values)
    if len(given) != len(kernel.parameters):
        raise ValueError(f"parameters must have {len(kernel.parameters)} values, got {len(given)}")
    out = bytearray(kernel.parameter_bytes)
    for parameter, value in zip(kernel.parameters.values(), given, strict=True):
        if isinstance(value, float):
            part = np.array(value, f"f{parameter.size}").tobytes()
        elif isinstance(value, bytes):
            part = value
        else:
            part = (int(value) % 256**parameter.size).to_bytes(parameter.size, "little")
        out[parameter.offset : parameter.offset + parameter.size] = part
    return bytes(out)


@lru_cache(maxsize=32)
def _only_kernel(text: str) -> Kernel:
    return Module(text).only()


def _compiled(kernel: Kernel) -> list[Run]:
    if kernel.runnable is None:
        kernel.runnable = runnable(kernel.code, kernel.labels)
    return kernel.runnable


def _three(sizes: Sequence[int], name: str) -> tuple[int, int, int]:
    x, y, z = (*sizes, 1, 1)[:3]
    if min(x, y, z) < 1:
        raise ValueError(f"{name} must have positive sizes, got {tuple(sizes)}")
    return int(x), int(y), int(z)


def _aligned(data: bytes) -> np.ndarray[Any, Any]:
    """A copy that starts at a multiple of 128."""
    room = np.zeros(len(data) + 128, np.uint8)
    start = -room.ctypes.data % 128
    room[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return room[start : start + len(data)]


def _blocks_at_once(call: Launch) -> int:
    x, y, z = call.block
    shared = call.kernel.shared_bytes + call.shared_bytes
    return max(1, min(THREADS_AT_ONCE // (x * y * z), SHARED_AT_ONCE // max(shared, 1024)))


__all__ = ["PtxError", "launch", "pack"]
