"""How the report writes numbers."""

import math

from fewshotseg.results.metrics import METRICS


def number(value: float, digits: int = 3) -> str:
    return "\u2013" if math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    return "\u2013" if math.isnan(value) else f"{value:+.{digits}f}"


def interval(pair, digits: int = 3, *, sign: bool = False) -> str:
    """'[0.681, 0.765]'; '' where it is undefined."""
    write = signed if sign else number
    return "" if math.isnan(pair[0]) else f"[{write(pair[0], digits)}, {write(pair[1], digits)}]"


def is_open(pair) -> bool:
    """Whether an interval is undefined: there are too few cases for one."""
    return math.isnan(pair[0])


def of_metric(name: str, value: float) -> str:
    """A value with the digits of its metric."""
    return number(value, METRICS[name].digits if name in METRICS else 3)


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else number(value)


def side(pair) -> int:
    """1 if an interval lies above zero, -1 below, 0 if it holds zero or is undefined."""
    low, high = pair
    return int(low > 0) - int(high < 0)
