"""Numbers as people read them: a value with its interval, z, a rate."""

from __future__ import annotations

from typing import Any

LOPSIDED = 0.1
"""An interval is shown by its bounds when its middle is off the value by more than this share of its half."""


def plus_minus(interval: dict[str, Any], digits: int = 3) -> str:
    """A value with its interval: "2.314 ± 0.018", "1.020 [1.000, 1.051]" when lopsided, "n/a" without a value."""
    if interval["value"] is None:
        return "n/a"
    if interval["low"] is None:
        return f"{interval['value']:.{digits}f}"
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    half = (high - low) / 2
    if abs(low + half - value) > max(0.5 * 10**-digits, LOPSIDED * half):
        return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f} ± {half:.{digits}f}"


def z_value(z: float) -> str:
    """A z-value with its sign, "+0.0" from either side."""
    return f"{round(z, 1) + 0:+.1f}"


def rate_cell(position: dict[str, Any]) -> str:
    """One position's unconditional rate and, in brackets, the conditional one: "0.351 (0.646)"."""
    rates = (position["unconditional"], position["conditional"])
    unconditional, conditional = ("n/a" if rate is None else f"{rate:.3f}" for rate in rates)
    return f"{unconditional} ({conditional})"
