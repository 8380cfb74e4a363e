"""Declarations of a kernel: parameters, arrays, bounds."""

import re

from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.syntax import NAME, SIZES, Kernel, Variable

PARAMETER = re.compile(rf"\.param\s+(.*?)\s*({NAME})\s*(?:\[(\d+)\])?\s*$", re.DOTALL)
VARIABLE = re.compile(
    rf"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+({NAME})\s*(?:\[(\d*)\])?\s*(?:=\s*(.*))?$", re.DOTALL
)
BOUNDS = {"minnctapersm": "blocks_at_once", "maxnreg": "most_registers"}  # fields of a kernel


def declare_parameters(kernel: Kernel, text: str) -> None:
    """The parameters of an entry, laid out one after the other as their alignments ask for."""
    offset = 0
    for part in filter(str.strip, text.split(",")):
        match = PARAMETER.search(part)
        if match is None:
            raise PtxError(f"cannot parse the parameter {part.strip()!r}")
        described, name, count = match.groups()
        kind = next(word for word in re.findall(r"\.(\w+)", described) if word in SIZES)
        # .ptr ... .align describes what a pointer points to, not the pointer
        own = described.split(".ptr")[0]
        stated = re.search(r"\.align\s+(\d+)", own)
        align = int(stated[1]) if stated else SIZES[kind]
        offset = -(-offset // align) * align
        size = SIZES[kind] * int(count or 1)
        kernel.parameters[name] = Variable(name, offset, size, align)
        offset += size


def declare(kernel: Kernel, space: str, text: str) -> None:
    """An array in shared, local, global or constant memory."""
    match = VARIABLE.match(text.strip())
    if match is None:
        raise PtxError(f"cannot parse the variable {text.strip()!r}")
    stated, kind, name, count, initial = match.groups()
    align = int(stated or SIZES[kind])
    size = 0 if count == "" else SIZES[kind] * int(count or 1)
    placed = {"shared": kernel.shared, "local": kernel.local}.get(space, kernel.constants)
    end = max((v.offset + v.size for v in placed.values()), default=0)
    value = _initial(initial, SIZES[kind]) if initial else b""
    placed[name] = Variable(name, -(-end // align) * align, size, align, value)


def _initial(text: str, size: int) -> bytes:
    """The bytes of ``{1, 2, ...}``."""
    words = re.findall(r"[^\s,{}]+", text)
    if not all(re.fullmatch(r"-?(?:0[xX][\da-fA-F]+|\d+)", word) for word in words):
        raise PtxError(f"only integers are implemented as initial values, got {text}")
    numbers = [int(word, 0) % 256**size for word in words]
    return b"".join(number.to_bytes(size, "little") for number in numbers)


def place_extern(kernel: Kernel) -> None:
    """Extern shared arrays, whose size a launch states, all begin behind the others."""
    extern = [variable for variable in kernel.shared.values() if not variable.size]
    align = max((variable.align for variable in extern), default=1)
    fixed = max((v.offset + v.size for v in kernel.shared.values() if v.size), default=0)
    for variable in extern:
        start = -(-fixed // align) * align
        kernel.shared[variable.name] = Variable(variable.name, start, 0, variable.align)


def declare_bounds(kernel: Kernel, text: str) -> None:
    """The directives behind the parameters: threads, registers, blocks on a multiprocessor."""
    threads = re.search(r"\.reqntid\s+([\d,\s]+)", text)
    if threads:
        x, y, z = (*(int(size) for size in threads[1].split(",")), 1, 1)[:3]
        kernel.threads = x, y, z
    for word, number in re.findall(r"\.(minnctapersm|maxnreg)\s+(\d+)", text):
        setattr(kernel, BOUNDS[word], int(number))
