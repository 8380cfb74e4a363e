"""The parts of a PTX program, as the parser leaves them."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

NAME = r"[A-Za-z_$%][\w$]*"  # an identifier, as a regular expression

# Bytes of each fundamental type. Registers of b16, u16, s16 and f16 are one class, and so on.
SIZES = {
    **dict.fromkeys(("b8", "u8", "s8", "e4m3", "e5m2"), 1),
    **dict.fromkeys(("b16", "u16", "s16", "f16", "bf16"), 2),
    **dict.fromkeys(("b32", "u32", "s32", "f32", "f16x2", "bf16x2", "tf32"), 4),
    **dict.fromkeys(("b64", "u64", "s64", "f64"), 8),
}
REGISTERS, MOST_REGISTERS = 65536, 255  # of a multiprocessor, of a thread at its start
CLASSES = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}  # no class for bytes: 16 bits hold them


class Register(NamedTuple):
    """``%r5``, or ``!%p5`` where a predicate is negated."""

    name: str
    kind: str  # pred, b16, b32 or b64
    number: int  # in its kind
    negated: bool = False


class Special(NamedTuple):
    """A register that the machine sets, such as ``%tid.x``."""

    name: str


class Immediate(NamedTuple):
    """A number: an integer, or the bits of a float of ``float_bytes`` bytes."""

    value: int
    float_bytes: int = 0


class Symbol(NamedTuple):
    """A variable, a parameter or a label."""

    name: str


class Address(NamedTuple):
    """``[base + offset]``, or ``[base, {coordinates}]`` of a tensor."""

    base: "Register | Symbol | Immediate"
    offset: int = 0
    coordinates: "tuple[Operand, ...]" = ()


class Vector(NamedTuple):
    """``{a, b, ...}``."""

    parts: "tuple[Operand, ...]"


class Pair(NamedTuple):
    """``a|b``: two destinations."""

    first: "Operand"
    second: "Operand"


class Sink(NamedTuple):
    """``_``: a destination that nobody reads."""


Operand: TypeAlias = "Register | Special | Immediate | Symbol | Address | Vector | Pair | Sink"


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``@guard opcode.modifiers operands;``."""

    line: int
    text: str
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None = None

    def has(self, *modifiers: str) -> bool:
        """Whether all of these modifiers are there."""
        return all(modifier in self.modifiers for modifier in modifiers)

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The modifiers that name types, in their order."""
        return tuple(m for m in self.modifiers if m in SIZES or m == "pred")

    @property
    def type(self) -> str:
        """The last of ``types``: that of the operands, where an instruction has one."""
        return self.types[-1]


@dataclass(frozen=True)
class Variable:
    """A parameter, or an array in shared or global memory."""

    name: str
    offset: int  # of a parameter in the parameters, of an array in its memory
    size: int  # 0: an extern array, as long as the launch says
    align: int
    initial: bytes = b""


@dataclass
class Kernel:
    """One ``.entry``."""

    name: str
    target: str = ""
    parameters: dict[str, Variable] = field(default_factory=dict)
    shared: dict[str, Variable] = field(default_factory=dict)
    local: dict[str, Variable] = field(default_factory=dict)
    constants: dict[str, Variable] = field(default_factory=dict)  # .global and .const arrays
    registers: dict[str, int] = field(default_factory=dict)  # how many of each class
    labels: dict[str, int] = field(default_factory=dict)  # index of the next instruction
    code: list[Instruction] = field(default_factory=list)
    threads: tuple[int, int, int] | None = None  # .reqntid
    blocks_at_once: int = 1  # .minnctapersm
    most_registers: int | None = None  # .maxnreg
    runnable: list[Any] | None = field(default=None, repr=False)  # what launches make of the code

    @cached_property
    def jumps_to(self) -> dict[int, list[int]]:
        """Branches by the index that they lead to."""
        found: dict[int, list[int]] = {}
        for place, code in enumerate(self.code):
            target = code.operands[0] if code.opcode == "bra" else None
            if isinstance(target, Symbol):
                found.setdefault(self.labels[target.name], []).append(place)
        return found

    @cached_property
    def uses_async_proxy(self) -> bool:
        """Whether wgmma or bulk copies read or write shared memory."""
        return any(code.opcode == "wgmma" or code.has("bulk") for code in self.code)

    def registers_at_launch(self, threads: int) -> int:
        """Registers that each thread has, as the directives bound them: a multiple of 8."""
        fit = REGISTERS // (threads * self.blocks_at_once)
        return min(fit, self.most_registers or fit, MOST_REGISTERS) // 8 * 8

    @property
    def parameter_bytes(self) -> int:
        """Size of all parameters."""
        return max((p.offset + p.size for p in self.parameters.values()), default=0)

    @property
    def shared_bytes(self) -> int:
        """Size of the shared arrays whose size the program states."""
        return max((v.offset + v.size for v in self.shared.values()), default=0)
