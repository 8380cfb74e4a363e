"""Numbers as text: the same digits in tables, plots and sentences."""

import math

ABSENT = "-"


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
