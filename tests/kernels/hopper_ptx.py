"""The CUDA kernels as nvcc compiles them, their PTX run by ``mbt_fast.testing.ptx``."""

import ctypes
import re
from functools import cached_property
from typing import Any, NamedTuple

from hopper import import_module
from nvcc_build import NVCC

from mbt_fast.testing import ptx
from mbt_fast.testing.ptx import tensor_map

WHY_NOT = "nvcc is not installed" if NVCC is None else ""
LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    *[ctypes.POINTER(ctypes.c_uint)] * 2,
    *(ctypes.c_size_t, ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_void_p),
)
ENCODE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *(ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p),
    *[ctypes.POINTER(ctypes.c_uint64)] * 2,
    *[ctypes.POINTER(ctypes.c_uint)] * 2,
    *[ctypes.c_int] * 4,
)


class Described(NamedTuple):
    """Something of the extension, and what it was made from."""

    of: Any
    is_from: tuple


class Launch(NamedTuple):
    """What the runtime was asked to launch."""

    kernel: str
    grid: tuple
    block: tuple
    shared_bytes: int
    stream: int
    parameters: bytes


def span(sizes, strides):
    """Bytes from the first to the last element; the last dimension is contiguous."""
    if 0 in sizes:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=False))
    return 2 * (last + sizes[-1])


class Extension:
    """Stands for ``mbt_fast._cuda``: its module, where a launch runs on the executor.

    Memory that a call is given is filled with NaN where the kernels are to write, and a kernel may
    touch nothing but what the call is given.
    """

    def __init__(self, library):
        self.module, self.folder = import_module(library), library.parent
        self.library = ctypes.CDLL(str(library))
        self._callbacks = LAUNCH(self._launch), ENCODE(self._encode)
        self.library.set_callbacks(*self._callbacks)
        self.backward_workspace = lambda call, *rest: self.module.backward_workspace(call.of, *rest)
        self.emulate(0, 2)
        self.forget()

    def emulate(self, seed, multiprocessors):
        """Choose the order of warps, 0 for all in step, and how many blocks share the items."""
        self.seed = seed
        self.library.set_multiprocessors(multiprocessors)

    def forget(self):
        """As fresh: nothing was launched, and no PTX is changed."""
        self.launched, self.changes, self.error = [], {}, None

    def change(self, kernel, edit):
        """Run ``edit(text)`` of the PTX of kernels whose name holds ``kernel``."""
        self.changes[kernel] = edit

    def Call(self, dtype, shape, scale, queue):
        return Described(self.module.Call(dtype, shape, scale, queue), shape)

    def StreamForward(self, *arguments):
        return Described(self.module.StreamForward(*arguments), arguments)

    def StreamBackward(self, *arguments):
        return Described(self.module.StreamBackward(*arguments), arguments)

    def bottleneck_attention_fwd(self, call, streams):
        read, written = [], []
        for stream in streams:
            qkv, strides, rows, lengths, out, lse, stats, kept = stream.is_from
            batch, heads, slots, dim = call.is_from
            read += [(qkv, span((batch, rows, 3, heads, dim), strides)), (lengths, 4 * batch)]
            row = batch * heads * rows
            written += [(out, 2 * row * dim), (lse, 4 * row), (stats, 8 * row)]
            written += [(kept, 2 * batch * heads * slots * dim)]
        self._run(read, written, self.module.bottleneck_attention_fwd, call, streams)

    def bottleneck_attention_bwd(self, call, streams, dslots, is_deterministic):
        batch, heads, slots, dim = call.is_from
        of_slots = 2 * batch * heads * slots * dim
        read, written = [], [(dslots, of_slots)]
        for stream in streams:
            qkv, strides, rows, lengths, out, kept, stats, dout, of_dout, *rest = stream.is_from
            dlse, workspace, dqkv = rest
            row = batch * heads * rows
            read += [(qkv, span((batch, rows, 3, heads, dim), strides)), (lengths, 4 * batch)]
            read += [(out, 2 * row * dim), (kept, of_slots), (stats, 8 * row), (dlse, 4 * row)]
            read += [(dout, span((batch, rows, heads, dim), of_dout))]
            floats = self.backward_workspace(call, rows, is_deterministic)
            written += [(workspace, 4 * floats), (dqkv, 6 * row * dim)]
        launch = self.module.bottleneck_attention_bwd
        self._run(read, written, launch, call, streams, dslots, is_deterministic)

    def _run(self, read, written, launch, call, streams, *rest):
        """Launch with these windows; an error of the executor is the caller's."""
        for address, size in written:
            if address:
                ctypes.memset(address, 0xFF, size)
        self.windows = [(at, size) for at, size in [*read, *written] if at and size]
        try:
            launch(call.of, [stream.of for stream in streams], *rest)
        except RuntimeError as refusal:
            error, self.error = self.error, None
            raise (error or refusal) from None

    def _launch(self, kernel, grid, block, shared_bytes, stream, parameters):
        """The runtime's callback. C has no way for an exception: ``_run`` raises it."""
        try:
            name = kernel.decode()
            (size,) = re.findall(rf"{name}_param_\d+\[(\d+)\]", self.texts[name])
            launch = Launch(
                *(name, tuple(grid[:3]), tuple(block[:3]), shared_bytes, stream or 0),
                ctypes.string_at(parameters[0], int(size)),
            )
            self.launched.append(launch)
            self.execute(launch)
        except BaseException as error:
            self.error = error
            return 1
        return 0

    def execute(self, launch):
        """Run the kernel's PTX, or what a test makes of it."""
        text = self.texts[launch.kernel]
        for name, edit in self.changes.items():
            text = edit(text) if name in launch.kernel else text
        ptx.launch(
            *(text, launch.grid, launch.block, launch.parameters, ptx.Memory(self.windows)),
            shared_bytes=launch.shared_bytes,
            seed=self.seed or None,
        )

    def _encode(self, to, kind, rank, base, sizes, strides, box, steps, *modes):
        """Likewise, of cuTensorMapEncodeTiled."""
        try:
            lists = sizes[:rank], strides[: rank - 1], box[:rank], steps[:rank]
            ctypes.memmove(to, tensor_map.encode(kind, base or 0, *lists, *modes), 128)
        except BaseException as error:
            self.error = error
            return 1
        return 0

    @cached_property
    def texts(self):
        """PTX by kernel: the head of its module, and its entry."""
        found = {}
        for path in sorted(self.folder.glob("*.ptx")):
            head, *entries = path.read_text().split(".visible .entry ")
            for entry in entries:
                found[entry[: entry.index("(")]] = f"{head}.visible .entry {entry}"
        return found
