"""Round numbers for the axes of a chart."""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

_MANTISSAS = tuple(map(Decimal, ("1", "2", "2.5", "5", "10")))


def nice_ticks(low: float, high: float, count: int = 5) -> list[Decimal]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten that enclose an interval.

    Decimals, because a multiple of 0.1 is exact as a decimal and not as a float.

    Args:
        low: Lower end, at most ``high``. An interval without length is widened first.
        high: Upper end.
        count: Intervals between ticks aimed at; about as many come out.

    Returns:
        Ascending ticks; the first is at most ``low``, the last at least ``high``.

    Raises:
        ValueError: An end is not finite, ``low`` exceeds ``high``, or ``count`` is not positive.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"low and high must be finite, got {low} and {high}")
    if low > high:
        raise ValueError(f"low must be at most high, got {low} and {high}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    bottom, top = _exact(low), _exact(high)
    if bottom == top:
        margin = abs(bottom) / 2 or Decimal(1)
        bottom, top = bottom - margin, top + margin
    step = _step((top - bottom) / count)
    first = int((bottom / step).to_integral_value(ROUND_FLOOR))
    last = int((top / step).to_integral_value(ROUND_CEILING))
    return [index * step for index in range(first, last + 1)]


def tick_text(tick: Decimal) -> str:
    """A tick as a reader writes it: no exponent, thousands separated."""
    return f"{tick:,f}"


def _exact(value: float) -> Decimal:
    return Decimal(repr(float(value)))


def _step(at_least: Decimal) -> Decimal:
    power = Decimal(1).scaleb(at_least.adjusted())
    return next(m * power for m in _MANTISSAS if m * power >= at_least)
