"""The one format of what was measured: a document of records, checked when written and when read.

A document is the outcome of one entry of ``benchmarks.registry`` on one machine: its environment,
the command, the conditions, the measured ceilings of the machine, the gate (the correctness tests
that guard the entry, run at the same commit) and the records. It is a JSON file with one record to
a line, so that a change is readable as a diff. What is unknown is left out.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_origin, get_type_hints

from mbt_fast.testing.timing import median_and_tails

ENVIRONMENT = ("device", "python", "torch", "mbt_fast", "commit", "tree", "sources", "date")
CONDITIONS = ("threads", "instruction_set", "allocator", "load_average")
CLOCKS = ("perf_counter", "process_time", "cuda events")
MODES = ("forward", "backward", "step")  # a step is forward, loss and backward, no optimiser

T = TypeVar("T")


class Spread(NamedTuple):
    """A median over rounds, the quantiles around it, and the figure for a machine left alone.

    Converted documents may lack the quantiles, those of before ``benchmarks.quiet`` the last.
    """

    median: float
    p20: float | None = None
    p80: float | None = None
    quiet: float | None = None

    @classmethod
    def of(cls, values: list[float], quiet: float) -> "Spread":
        """Median, 20 % and 80 % quantile of what was measured, and the quiet figure."""
        return cls(*map(significant, (*median_and_tails(values), quiet)))

    @property
    def reported(self) -> float:
        """What tables and texts show."""
        return self.median if self.quiet is None else self.quiet


def significant(value: float) -> float:
    """Rounded to five digits: more than any clock is good for."""
    return float(f"{value:.5g}")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One variant of one case.

    Attributes:
        entry: Name in ``benchmarks.registry``.
        case: What is measured within the entry, such as ``"gelu tanh"``.
        variant: Which way of doing it: ours, or a peer of ``benchmarks.registry``.
        baseline: The variant of the same case that ``ratio`` is relative to.
        mode: ``"forward"`` (no gradient), ``"backward"`` alone, or ``"step"``: both, and a loss.
        shape: Numbers that say how large the case is; the same for all its variants.
        dtype: Of inputs and weights.
        device: ``"cpu"`` or ``"cuda"``.
        threads: Of torch on the CPU.
        clock: ``"perf_counter"``, ``"process_time"`` or ``"cuda events"``.
        calls: Of the variant to one reading of the clock.
        passes: Visits to the case, each with variants and inputs of its own.
        rounds: Readings in all passes, interleaved with those of the other variants.
        ms: Milliseconds of one call.
        ratio: Time of the baseline by that of the variant, round by round and of the quiet times:
            above 1 is faster.
        uncertainty: Relative standard error of the reported ratio, from what passes differ in.
        flops: Of one call, two per multiply-add, useful ones only.
        attention_flops: Those of them that are the two products of attention.
        bytes: That one call must read and write at least.
        peak_memory: Bytes that one call holds at its peak, beyond its inputs and weights.
        saved_memory: Bytes that it keeps for the backward.
        share_of_matmul: ``flops`` per second, of the document's ceiling.
        share_of_copy: ``bytes`` per second, likewise.
        launches: Kernels on a GPU; on the CPU operators of torch that write memory.
        error: Why there is no measurement.
    """

    entry: str
    case: str
    variant: str
    mode: str
    shape: dict[str, Any]
    dtype: str
    device: str
    baseline: str | None = None
    threads: int | None = None
    clock: str | None = None
    calls: int = 1
    passes: int = 1
    rounds: int = 0
    ms: Spread | None = None
    ratio: Spread | None = None
    uncertainty: float | None = None
    flops: int | None = None
    attention_flops: int | None = None
    bytes: int | None = None
    peak_memory: int | None = None
    saved_memory: int | None = None
    share_of_matmul: float | None = None
    share_of_copy: float | None = None
    launches: int | None = None
    error: str | None = None

    @property
    def group(self) -> tuple[Any, ...]:
        """What the variants of one comparison have in common."""
        shape = json.dumps(self.shape, sort_keys=True)
        return (self.entry, self.case, self.mode, shape, self.dtype, self.device, self.threads)


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What torch reaches on this machine: its square matrix product, by dtype, and its copy."""

    matmul_gflops: dict[str, float]
    copy_gb_per_s: float | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The outcome of the correctness tests that guard an entry, and of what they were run."""

    tests: list[str]
    passed: int
    failed: int
    commit: str | None
    tree: str | None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A power law through records: ``quantity`` grows like ``against ** exponent``.

    ``residual`` is the root mean square of the logarithms' differences from the line.
    """

    case: str
    variant: str
    quantity: str
    against: str
    exponent: float
    residual: float
    points: int


@dataclass(frozen=True, kw_only=True)
class Document:
    """All records of one entry on one machine."""

    environment: dict[str, Any]
    command: str
    conditions: dict[str, Any]
    ceilings: Ceilings
    gate: Gate | None = None
    notes: list[str] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)
    records: list[Record]

    def __post_init__(self) -> None:
        """Check the whole of it.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: A key is missing, or values contradict one another.
        """
        _check_keys("environment", self.environment, ENVIRONMENT)
        _check_keys("conditions", self.conditions, CONDITIONS)
        groups: dict[tuple[Any, ...], dict[str, Record]] = {}
        for index, record in enumerate(self.records):
            name = f"records[{index}]"
            _check(record, name)
            variants = groups.setdefault(record.group, {})
            if record.variant in variants:
                raise ValueError(f"{name} must be the only one of its kind, got another {record}")
            variants[record.variant] = record
        for record in self.records:
            peers = groups[record.group]
            if record.ratio and (record.baseline not in peers or not peers[record.baseline].ms):
                raise ValueError(f"baseline must be measured beside its variants, got {record}")

    @property
    def rounds_compared(self) -> str:
        """Which of the rounds its times and ratios are of."""
        quiet = any(record.ms and record.ms.quiet is not None for record in self.records)
        return f"{'quickest fifths' if quiet else 'medians'} of the rounds"

    def find(self, **values: Any) -> Record:
        """The one record with these values; a name that is no attribute is looked up in ``shape``.

        Raises:
            LookupError: There is none, or more than one.
        """
        found = self.select(**values)
        if len(found) != 1:
            raise LookupError(f"values must name one record, got {len(found)} for {values}")
        return found[0]

    def select(self, **values: Any) -> list[Record]:
        """All records with these values, as in ``find``."""
        return [
            record
            for record in self.records
            if all(_value(record, name) == value for name, value in values.items())
        ]


def load(path: Path) -> Document:
    """Read a document.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: The file is no such document; unknown keys are refused.
    """
    data = json.loads(path.read_text())
    try:
        data = _known(Document, data, "document")
        data["ceilings"] = _build(Ceilings, data["ceilings"], "ceilings")
        if data.get("gate") is not None:
            data["gate"] = _build(Gate, data["gate"], "gate")
        for name, kind in (("fits", Fit), ("records", Record)):
            listed = enumerate(data.get(name, []))
            data[name] = [_build(kind, values, f"{name}[{index}]") for index, values in listed]
        return Document(**data)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path.name}: {error}") from error


def save(document: Document, path: Path) -> None:
    """Write a document, one record to a line."""
    head = _without_none(asdict(replace(document, records=[], fits=[])))
    del head["records"], head["fits"]
    text = json.dumps(head, indent=1).removesuffix("\n}")
    for name, items in (("fits", document.fits), ("records", document.records)):
        lines = ",\n  ".join(json.dumps(_without_none(_plain(item))) for item in items)
        text += f',\n "{name}": [' + (f"\n  {lines}\n ]" if items else "]")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n}\n")


def _plain(item: Fit | Record) -> dict[str, Any]:
    values = asdict(item)
    return {
        key: _without_none(value._asdict()) if isinstance(value, Spread) else value
        for key, value in values.items()
    }


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _build(kind: type[T], values: Any, name: str) -> T:
    known = _known(kind, values, name)
    for key in ("ms", "ratio"):
        if kind is Record and key in known:
            known[key] = Spread(**known[key])
    return kind(**known)


def _known(kind: type, values: Any, name: str) -> dict[str, Any]:
    """The values as keywords of a dataclass."""
    if not isinstance(values, dict):
        raise TypeError(f"{name} must be an object, got {type(values).__name__}")
    names = {f.name: f for f in fields(kind)}
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(f"{name} must have known keys only, got {', '.join(unknown)}")
    needed = [n for n, f in names.items() if f.default is MISSING and f.default_factory is MISSING]
    _check_keys(name, values, needed)
    return dict(values)


def _check_keys(name: str, values: Mapping[str, Any], needed: Iterable[str]) -> None:
    missing = [key for key in needed if key not in values]
    if missing:
        raise ValueError(f"{name} must have {', '.join(missing)}, got {', '.join(values)}")


def _check(record: Record, name: str) -> None:
    """Types, and what must hold within one record."""
    for key, hint in get_type_hints(Record).items():
        value = getattr(record, key)
        if not isinstance(value, get_origin(hint) if get_origin(hint) is dict else hint):
            raise TypeError(f"{name}.{key} must be {hint}, got {value!r}")
    if record.mode not in MODES:
        raise ValueError(f"{name}.mode must be one of {', '.join(MODES)}, got {record.mode!r}")
    if record.clock is not None and record.clock not in CLOCKS:
        raise ValueError(f"{name}.clock must be one of {', '.join(CLOCKS)}, got {record.clock!r}")
    for key in ("ms", "ratio"):
        spread = getattr(record, key)
        if spread and not _in_order(spread):
            raise ValueError(f"{name}.{key} must be positive and in order, got {spread}")
    if record.ms and (not record.rounds or record.clock is None):
        raise ValueError(f"{name}.rounds and clock must be known of measured times, got {record}")
    if record.error and record.ms:
        raise ValueError(f"{name} must have an error or times, got both: {record.error!r}")


def _in_order(spread: Spread) -> bool:
    known = [value for value in (spread.p20, spread.median, spread.p80) if value is not None]
    return known == sorted(known) and min(known[0], spread.reported) > 0


def _value(record: Record, name: str) -> Any:
    return getattr(record, name) if hasattr(record, name) else record.shape.get(name)
