"""Power laws through records: how cost grows with what."""

from collections.abc import Sequence
from math import log
from statistics import fmean, linear_regression

from benchmarks.record import Fit


def fit_power(
    x: Sequence[float], y: Sequence[float], *, case: str, variant: str, quantity: str, against: str
) -> Fit:
    """Least squares of ``log y`` against ``log x``; the exponent is the slope.

    Args:
        x: Positive, at least two different values.
        y: Positive.
        case: Of the records.
        variant: Likewise.
        quantity: What ``y`` is.
        against: What ``x`` is.

    Raises:
        statistics.StatisticsError: There are fewer than two different ``x``.
    """
    logs_x, logs_y = [log(value) for value in x], [log(value) for value in y]
    slope, intercept = linear_regression(logs_x, logs_y)
    errors = [b - (slope * a + intercept) for a, b in zip(logs_x, logs_y, strict=True)]
    return Fit(
        case=case,
        variant=variant,
        quantity=quantity,
        against=against,
        exponent=slope,
        residual=fmean(error**2 for error in errors) ** 0.5,
        points=len(logs_x),
    )
