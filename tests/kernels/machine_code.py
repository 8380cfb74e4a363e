"""SASS, the machine code of NVIDIA GPUs, as lists of instructions. No GPU is needed."""

import importlib.util
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\S+?)(?:\s+(.*?))?\s*;", re.M
)


class Instruction(NamedTuple):
    """One instruction; a predicate before it is left out."""

    address: int
    opcode: str
    operands: str


def cuobjdump():
    """From the CUDA toolkit, or from Triton, which brings its own."""
    found = shutil.which("cuobjdump")
    if found or importlib.util.find_spec("triton") is None:
        return found
    (package,) = importlib.util.find_spec("triton").submodule_search_locations
    return shutil.which("cuobjdump", path=str(Path(package) / "backends/nvidia/bin"))


@cache
def listings(file):
    """The text of every kernel in an object, by its mangled name."""
    command = [cuobjdump(), "-sass", file]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions = re.split(r"\n\s*Function : ", listing)[1:]
    return {function.split("\n", 1)[0].strip(): function for function in functions}


def instructions(listing):
    """Those of a kernel, in the order of their addresses."""
    found = INSTRUCTION.findall(listing)
    return [Instruction(int(at, 16), opcode, operands) for at, opcode, operands in found]


def inner_loops(listing, opcode):
    """The loops with an instruction whose name begins so: none overlaps a shorter one.

    A branch from a slow path back into a loop, or behind it, looks like a longer loop.
    """
    code = instructions(listing)
    ends = [
        (int(target[1], 16), branch.address)
        for branch in code
        if branch.opcode.startswith("BRA")
        and (target := re.search(r"0x([0-9a-f]+)", branch.operands))
        and int(target[1], 16) <= branch.address
    ]
    found = []
    for first, last in sorted(ends, key=lambda loop: loop[1] - loop[0]):
        body = [one for one in code if first <= one.address <= last]
        is_apart = all(last < a or b < first for a, b, _ in found)
        if is_apart and any(one.opcode.startswith(opcode) for one in body):
            found.append((first, last, body))
    return [body for _, _, body in found]
