"""SASS, the machine code of NVIDIA GPUs, as lists of instructions. No GPU is needed."""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?(\S+?)(?:\s+(.*?))?\s*;", re.M
)
ADDRESS = re.compile(r"0x([0-9a-f]+)$")


class Instruction(NamedTuple):
    """One instruction of a warp."""

    address: int
    predicate: str  # empty where it always runs
    opcode: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a branch goes; of others ``None``."""
        found = ADDRESS.search(self.operands) if self.opcode.startswith("BRA") else None
        return int(found[1], 16) if found else None

    @property
    def may_fall_through(self) -> bool:
        """Whether the next instruction may follow: not behind an unconditional branch."""
        conditional = self.predicate or "," in self.operands
        return bool(conditional) or not self.opcode.startswith(("BRA", "EXIT", "RET"))


def cuobjdump() -> str | None:
    """From the CUDA toolkit, or from Triton, which brings its own."""
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    if found or spec is None or spec.submodule_search_locations is None:
        return found
    (package,) = spec.submodule_search_locations
    return shutil.which("cuobjdump", path=str(Path(package) / "backends/nvidia/bin"))


def dump(option: str, file: str | Path) -> str:
    """What ``cuobjdump`` says of an object.

    Raises:
        FileNotFoundError: There is no ``cuobjdump``.
    """
    tool = cuobjdump()
    if tool is None:
        raise FileNotFoundError("cuobjdump must be installed, with CUDA or with Triton")
    done = subprocess.run([tool, option, str(file)], capture_output=True, text=True, check=True)
    return done.stdout


@cache
def listings(file: str | Path) -> dict[str, str]:
    """The text of every kernel in an object, by its mangled name."""
    functions = re.split(r"\n\s*Function : ", dump("-sass", file))[1:]
    return {function.split("\n", 1)[0].strip(): function for function in functions}


def instructions(listing: str) -> list[Instruction]:
    """Those of a kernel, in the order of their addresses."""
    found = INSTRUCTION.findall(listing)
    return [Instruction(int(at, 16), *rest) for at, *rest in found]


def inner_loops(listing: str, opcode: str) -> list[list[Instruction]]:
    """The loops with an instruction whose name begins so: none overlaps a shorter one.

    A branch from a slow path back into a loop, or behind it, looks like a longer loop.
    """
    code = instructions(listing)
    ends = [
        (branch.target, branch.address)
        for branch in code
        if branch.target is not None and branch.target <= branch.address
    ]
    found: list[tuple[int, int, list[Instruction]]] = []
    for first, last in sorted(ends, key=lambda loop: loop[1] - loop[0]):
        body = [one for one in code if first <= one.address <= last]
        is_apart = all(last < a or b < first for a, b, _ in found)
        if is_apart and any(one.opcode.startswith(opcode) for one in body):
            found.append((first, last, body))
    return [body for _, _, body in found]


def shortest_turn(loop: Sequence[Instruction], opcode: str) -> list[Instruction]:
    """The shortest way through a loop that meets the most instructions of this name.

    That is a turn in which nothing is masked and nothing waits: what such turns skip is left out.
    Branches out of the loop, and back inside it, are not taken.
    """
    place = {one.address: index for index, one in enumerate(loop)}
    # From each instruction to the end: how many of the name are met, minus how many there are.
    best: list[tuple[int, int, int]] = [(0, 0, 0)] * len(loop)  # (met, -length, next)
    for index in range(len(loop) - 1, -1, -1):
        one = loop[index]
        ways = [place[one.target]] if one.target in place else []
        ways = [way for way in ways if way > index]
        if (one.may_fall_through or not ways) and index + 1 < len(loop):
            ways.append(index + 1)
        met, length, following = max(((*best[way][:2], way) for way in ways), default=(0, 0, -1))
        best[index] = (met + one.opcode.startswith(opcode), length - 1, following)
    turn, index = [], 0
    while index >= 0:
        turn.append(loop[index])
        index = best[index][2]
    return turn
