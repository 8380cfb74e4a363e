"""Tables, and numbers as text: the same digits in tables, plots and sentences."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

ABSENT = "-"

Row = TypeVar("Row")


def significant(value: float | None, digits: int = 3) -> str:
    """So many significant digits, but all before the point; never an exponent.

    ``None`` gives ``"-"``.
    """
    if value is None:
        return ABSENT
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    magnitude = math.floor(math.log10(abs(value)))
    rounded = round(value, digits - 1 - magnitude)
    magnitude = math.floor(math.log10(abs(rounded)))  # 9.996 has become 10.00
    return f"{value:.{max(0, digits - 1 - magnitude)}f}"


def with_tails(
    tails: Sequence[float | None], as_text: Callable[[float | None], str] = significant
) -> str:
    """Median, 20 % and 80 % quantile: ``12.3 [12.1-12.9]``, or ``"-"`` without a median."""
    middle, low, high = map(as_text, tails)
    return middle if middle == ABSENT else f"{middle} [{low}-{high}]"


def cells(
    rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]
) -> tuple[list[str], list[list[str]]]:
    """Headers and lines of a table; a column that is empty, or ``"-"`` in each row, is left out."""
    found = {header: [cell(row) for row in rows] for header, cell in columns.items()}
    kept = {header: column for header, column in found.items() if not {*column} <= {"", ABSENT}}
    return list(kept), [list(line) for line in zip(*kept.values(), strict=True)]


def text(headers: Sequence[str], lines: Sequence[Sequence[str]], left: Sequence[str]) -> str:
    """A table for a terminal; the columns of ``left`` are aligned left. Needs ``tabulate``."""
    from tabulate import tabulate

    align = ["left" if header in left else "right" for header in headers]
    return tabulate(lines, headers=headers, colalign=align, disable_numparse=True)
