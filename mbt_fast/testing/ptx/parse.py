"""From PTX text to kernels: https://docs.nvidia.com/cuda/parallel-thread-execution, chapters 4, 5.

The syntax that compilers write: statements end with a semicolon, braces open scopes with registers
and labels of their own, ``.loc`` and ``.file`` stand on lines of their own.
"""

import re
import struct
from collections.abc import Iterator

from mbt_fast.testing.ptx.declare import declare, declare_bounds, declare_parameters, place_extern
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.syntax import (
    CLASSES,
    NAME,
    SIZES,
    Address,
    Immediate,
    Instruction,
    Kernel,
    Operand,
    Pair,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
LINE_DIRECTIVE = re.compile(r"^[ \t]*\.(?:loc|file)\b[^\n]*", re.MULTILINE)
SECTION = re.compile(r"^[ \t]*\.section\b", re.MULTILINE)
ENTRY = re.compile(rf"\.entry\s+({NAME})\s*(?:\(([^)]*)\))?([^{{;]*)\{{")
MODULE_VARIABLE = re.compile(
    r"^[^\n\S]*(?:\.\w+\s+)*?\.(shared|global|const)\s+([^;]*);", re.MULTILINE
)
TOKEN = re.compile(rf"\s*(?:(\{{)|(\}})|({NAME})\s*:(?!:)|([^;]+);)", re.DOTALL)
RANGE = re.compile(rf"({NAME})(?:<(\d+)>)?$")
INTEGER = re.compile(r"-?\s*(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")
HEX_FLOAT = re.compile(r"0([fFdD])([0-9a-fA-F]{8,16})$")
DECIMAL_FLOAT = re.compile(r"-?\d*\.\d+(?:[eE][-+]?\d+)?$")

Scope = dict[str, Register | str]  # registers, and labels by their unique names


class Module(dict[str, Kernel]):
    """The kernels of a PTX text by name; each is parsed when it is first asked for.

    Args:
        text: What ``nvcc -ptx`` writes, or Triton has in ``kernel.asm["ptx"]``.

    Raises:
        PtxError: The text cannot be understood; names the line.
    """

    def __init__(self, text: str) -> None:
        """Find the kernels."""
        section = SECTION.search(text)
        text = text[: section.start()] if section else text
        text = COMMENT.sub(_blank, text)
        text = LINE_DIRECTIVE.sub(_blank, text)
        super().__init__()
        self._entries: dict[str, tuple[re.Match[str], str]] = {}
        outside, position = [], 0
        for match in ENTRY.finditer(text):
            end = _closing_brace(text, match.end())
            self._entries[match[1]] = (match, text[match.end() : end])
            outside.append(text[position : match.start()])
            position = end
        self._outside = "\n".join([*outside, text[position:]])
        target = re.search(r"\.target\s+(\w+)", text)
        self._target = target[1] if target else ""

    @property
    def names(self) -> list[str]:
        """Names of all kernels."""
        return list(self._entries)

    def __missing__(self, name: str) -> Kernel:
        """Parse a kernel."""
        if name not in self._entries:
            raise PtxError(f"kernel must be one of {self.names}, got {name!r}")
        match, body = self._entries[name]
        kernel = Kernel(name, self._target)
        declare_parameters(kernel, match[2] or "")
        declare_bounds(kernel, match[3])
        for space, rest in MODULE_VARIABLE.findall(self._outside):
            declare(kernel, space, rest)
        line = 1 + match.string.count("\n", 0, match.end())
        _Body(kernel, line).parse(body)
        place_extern(kernel)
        self[name] = kernel
        return kernel

    def only(self) -> Kernel:
        """The one kernel of a text that has one."""
        if len(self._entries) != 1:
            raise PtxError(f"the text must have one kernel, got {self.names}")
        return self[self.names[0]]


def _blank(match: re.Match[str]) -> str:
    """Lines keep their numbers."""
    return "\n" * match[0].count("\n")


def _closing_brace(text: str, position: int) -> int:
    depth = 1
    for brace in re.finditer(r"[{}]", text[position:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return position + brace.start()
    raise PtxError("a kernel must end with a brace")


class _Body:
    """The statements of one kernel."""

    def __init__(self, kernel: Kernel, line: int) -> None:
        self.kernel, self.line = kernel, line
        self.scopes: list[Scope] = [{}]

    def parse(self, text: str) -> None:
        pending: list[tuple[int, str, list[Scope]]] = []
        for line, kind, word in self._statements(text):
            if kind == "open":
                self.scopes = [*self.scopes, {}]
            elif kind == "close":
                self.scopes = self.scopes[:-1]
            elif kind == "label":
                unique = word if len(self.scopes) == 1 else f"{word}@{line}"
                self.scopes[-1][word] = unique
                self.kernel.labels[unique] = len(pending)
            elif not self._directive(word):
                pending.append((line, word, self.scopes))
        # Labels may stand behind the branches to them, so operands are read at the end.
        for line, word, scopes in pending:
            self.scopes = scopes
            self.kernel.code.append(self._instruction(line, " ".join(word.split())))

    def _statements(self, text: str) -> Iterator[tuple[int, str, str]]:
        line, position = self.line, 0
        end = len(text.rstrip())
        while position < end:
            match = TOKEN.match(text, position)
            if match is None:
                raise PtxError("a statement must end with a semicolon", line, text[position:][:60])
            kind = ("open", "close", "label", "statement")[(match.lastindex or 1) - 1]
            start = match.start(match.lastindex or 1)
            line += text.count("\n", position, start)
            yield line, kind, match[match.lastindex or 1]
            line += text.count("\n", start, match.end())
            position = match.end()

    def _directive(self, statement: str) -> bool:
        if not statement.startswith("."):
            return False
        word, rest = ([*statement.split(None, 1), ""])[:2]
        if word == ".reg":
            self._registers(rest)
        elif word in (".shared", ".local"):
            declare(self.kernel, word[1:], rest)
        elif word not in (".pragma", ".maxnreg", ".minnctapersm"):
            raise PtxError(f"the directive {word} is not implemented")
        return True

    def _registers(self, text: str) -> None:
        kind, names = text.split(None, 1)
        kind = kind.lstrip(".")
        group = "pred" if kind == "pred" else CLASSES[SIZES[kind]]
        for part in names.split(","):
            match = RANGE.match(part.strip())
            if match is None:
                raise PtxError(f"cannot parse the registers {text!r}")
            stem, count = match[1], match[2]
            every = [stem] if count is None else [f"{stem}{i}" for i in range(int(count))]
            for name in every:
                index = self.kernel.registers.get(group, 0)
                self.kernel.registers[group] = index + 1
                self.scopes[-1][name] = Register(name, group, index)

    def _instruction(self, line: int, text: str) -> Instruction:
        guard: Operand | None = None
        rest = text
        try:
            if text.startswith("@"):
                word, rest = text.split(None, 1)
                guard = self._operand(word[1:])
            if guard is not None and not isinstance(guard, Register):
                raise PtxError(f"a guard must be a predicate, got {guard}")
            opcode, _, operands = rest.partition(" ")
            base, *modifiers = opcode.split(".")
            parsed = tuple(self._operand(part) for part in _split(operands))
        except PtxError as error:
            raise PtxError(str(error), line, text) from None
        return Instruction(line, text, base, tuple(modifiers), parsed, guard)

    def _operand(self, text: str) -> Operand:
        text = text.strip()
        if text.startswith("["):
            return self._address(text[1:-1])
        if text.startswith("{"):
            return Vector(tuple(self._operand(part) for part in _split(text[1:-1])))
        if "|" in text:
            first, second = text.split("|")
            return Pair(self._operand(first), self._operand(second))
        if text == "_":
            return Sink()
        if text.startswith("!"):
            register = self._operand(text[1:])
            if not isinstance(register, Register):
                raise PtxError(f"only a predicate can be negated, got {text}")
            return register._replace(negated=True)
        return _number(text) or self._name(text)

    def _address(self, text: str) -> Address:
        base, *coordinates = _split(text)
        match = re.match(r"\s*(\S+?)\s*(?:([+-])\s*(-?\s*\w+))?\s*$", base)
        if match is None:
            raise PtxError(f"cannot parse the address [{text}]")
        offset = int(match[3].replace(" ", ""), 0) if match[3] else 0
        place = self._operand(match[1])
        if not isinstance(place, (Register, Symbol, Immediate)):
            raise PtxError(f"cannot parse the address [{text}]")
        parts = tuple(
            part
            for group in map(self._operand, coordinates)
            for part in (group.parts if isinstance(group, Vector) else (group,))
        )
        return Address(place, -offset if match[2] == "-" else offset, parts)

    def _name(self, text: str) -> Operand:
        for scope in reversed(self.scopes):
            if text in scope:
                found = scope[text]
                return Symbol(found) if isinstance(found, str) else found
        if text.startswith("%") or text == "WARP_SZ":
            return Special(text)
        return Symbol(text)


def _number(text: str) -> Immediate | None:
    if INTEGER.match(text):
        digits = text.replace(" ", "").rstrip("U")
        octal = re.match(r"-?0\d+$", digits)
        return Immediate(int(digits, 8) if octal else int(digits, 0))
    match = HEX_FLOAT.match(text)
    if match:
        return Immediate(int(match[2], 16), 4 if match[1] in "fF" else 8)
    if DECIMAL_FLOAT.match(text):
        return Immediate(struct.unpack("<Q", struct.pack("<d", float(text)))[0], 8)
    return None


def _split(text: str) -> list[str]:
    """Cut at the commas that are in no brackets."""
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth:
            parts.append(text[start:position])
            start = position + 1
    return [part for part in [*parts, text[start:]] if part.strip()]
