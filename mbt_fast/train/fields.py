"""Sections of a training configuration: what each field takes, checked when a section is made."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

from mbt_fast.errors import InputError

_KINDS = {int: "an integer", bool: "true or false", float: "a number", str: "a string"}
AnySection = TypeVar("AnySection", bound="Section")


@dataclass(frozen=True)
class Within:
    """The range of a number; an end that is ``open`` does not belong to it."""

    least: float = -math.inf
    most: float = math.inf
    open: tuple[str, ...] = ()

    def holds(self, value: float) -> bool:
        """Whether the number is finite and in range."""
        above = value > self.least if "least" in self.open else value >= self.least
        below = value < self.most if "most" in self.open else value <= self.most
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        """The requirement in words."""
        if self == Within():
            return "finite"
        if self.most == math.inf:
            return f"{'above' if 'least' in self.open else 'at least'} {self.least:g}"
        left, right = "[("["least" in self.open], "])"["most" in self.open]
        return f"in {left}{self.least:g}, {self.most:g}{right}"


Natural = Annotated[int, Within(0)]
Positive = Annotated[int, Within(1)]
Finite = Annotated[float, Within()]
NotNegative = Annotated[float, Within(0)]
PositiveNumber = Annotated[float, Within(0, open=("least",))]
Share = Annotated[float, Within(0, 1)]
PositiveShare = Annotated[float, Within(0, 1, open=("least",))]
ShareBelowOne = Annotated[float, Within(0, 1, open=("most",))]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table of the configuration; its fields are the keys.

    Raises:
        InputError: A value has the wrong type, or is out of range.
    """

    title: ClassVar[str]

    def __post_init__(self) -> None:
        """Check every field, and turn lists into tuples."""
        for f in fields(self):
            value = accept(f"{self.title}.{f.name}", f.type, getattr(self, f.name))
            object.__setattr__(self, f.name, value)

    @classmethod
    def from_table(cls: type[AnySection], values: dict[str, Any]) -> AnySection:
        """Make the section from its table.

        Raises:
            InputError: A key is unknown or missing, or a value does not fit.
        """
        names = [f.name for f in fields(cls)]
        for name in values:
            check_known(f"{cls.title}.{name}", name, names, f"{cls.title}.")
        for f in fields(cls):
            if f.default is MISSING and f.default_factory is MISSING and f.name not in values:
                raise InputError(f"{cls.title}.{f.name} must be given, got none")
        return cls(**values)

    def to_table(self) -> dict[str, Any]:
        """The fields that have a value; inverse of ``from_table``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value not in (None, {})}


def check_known(given: str, name: str, known: Iterable[str], prefix: str = "") -> None:
    """Refuse a name that is not known, with the nearest one that is.

    Args:
        given: What the message calls it.
        name: What is looked up.
        known: The names that there are.
        prefix: Put before a known name in the message.

    Raises:
        InputError: It is not known.
    """
    known = list(known)
    if name in known:
        return
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    choice = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}"
    raise InputError(f"{given} is unknown; {choice}")


def accept(name: str, kind: Any, value: Any) -> Any:
    """A value as a field of this type holds it.

    Args:
        name: Of the field, for messages.
        kind: ``int``, ``float``, ``bool``, ``str``, a ``Literal``, a tuple of fixed length, a
            ``Mapping`` from names, any of them ``Annotated`` with a range, or a union of one, that
            is no string, with ``None``, which ``"none"`` stands for.
        value: What was given.

    Raises:
        InputError: It has another type, or is out of range.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        number = accept(name, args[0], value)
        if not args[1].holds(number):
            raise InputError(f"{name} must be {args[1]}, got {value!r}")
        return number
    if origin is Literal:
        if value not in args:
            raise InputError(f"{name} must be one of {', '.join(args)}, got {value!r}")
        return value
    if origin is UnionType or NoneType in args:
        (inner,) = (arg for arg in args if arg is not NoneType)
        return None if value in (None, "none") else accept(name, inner, value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(args):
            raise InputError(f"{name} must be a list of {len(args)} values, got {value!r}")
        return tuple(accept(name, arg, part) for arg, part in zip(args, value, strict=True))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise InputError(f"{name} must be a table, got {value!r}")
        return {key: accept(f"{name}.{key}", args[1], part) for key, part in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{name} must be {_KINDS[kind]}, got {value!r}")
    return value
