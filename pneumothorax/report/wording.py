"""Numbers as the page writes them."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from pneumothorax.rle import KAGGLE_SHAPE

MISSING = "–"


def score(value: float | None) -> str:
    """0.85673 -> 0.8567"""
    return MISSING if _missing(value) else f"{value:.4f}"


def percent(value: float | None, digits: int = 2) -> str:
    """0.85673 -> 85.67, without the percent sign"""
    return MISSING if value is None or _missing(value) else f"{100 * value:.{digits}f}"


def signed(value: float | None) -> str:
    """-0.01234 -> −0.0123, with a minus sign as wide as the plus"""
    return MISSING if _missing(value) else f"{value:+.4f}".replace("-", "−")


def interval(ends: tuple[float, float] | None, text: Callable[[float], str]) -> str:
    """(low, high) -> "low to high", each written by `text`; "" without an interval."""
    if ends is None or _missing(ends[0]) or _missing(ends[1]):
        return ""
    return f"{text(ends[0])} to {text(ends[1])}"


def p_value(value: float | None) -> str:
    if value is None or _missing(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def threshold(name: str, value: float) -> str:
    """0.35 -> 0.35; fill_holes, and an area that no image has, as words"""
    if pd.isna(value):
        return ""
    if name == "min_area" and value > math.prod(KAGGLE_SHAPE):
        return "all empty"
    return ("filled" if value else "kept") if name == "fill_holes" else f"{value:.7g}"


def count(value: float) -> str:
    """12047 -> 12,047"""
    return f"{int(value):,}"


def scaled(value: float | None) -> str:
    """24436369 -> 24.4 M"""
    if value is None or _missing(value):
        return MISSING
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """11520 -> 3 h 12 min"""
    if seconds is None or _missing(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def memory(mib: float | None) -> str:
    """8090 -> 7.9 GiB"""
    if mib is None or _missing(mib):
        return MISSING
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def anchor(text: str) -> str:
    """Letters, digits and hyphens, for an element's id."""
    return "".join(
        letter if letter.isascii() and letter.isalnum() else "-" for letter in text.lower()
    )


def _missing(value: Any) -> bool:
    return value is None or bool(pd.isna(value))
