"""Times, numbers and durations as people write them."""

from __future__ import annotations

import datetime as dt
import re

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
NOTHING = "-"


def age(seconds: int) -> str:
    """`42s`, `7m`, `5h`, `3d`: at least two of a unit before the next one is used, as kubectl does it."""
    seconds = max(0, seconds)
    for unit in ("d", "h", "m"):
        if seconds >= 2 * _UNITS[unit]:
            return f"{seconds // _UNITS[unit]}{unit}"
    return f"{seconds}s"


def since(then: int, now: int) -> str:
    """The age of a time; `-` for 0, which means never."""
    return age(now - then) if then else NOTHING


def clock_time(at: int) -> str:
    """UTC, to the second."""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def number(value: float | None, *, sign: bool = False) -> str:
    """Four decimals, as the verdicts' messages have; `-` for none."""
    return NOTHING if value is None else f"{value:+.4f}" if sign else f"{value:.4f}"


def duration(text: str) -> float:
    """Seconds of `90`, `90s`, `10m`, `2h`, `1d`. Raises ValueError with a sentence."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None:
        raise ValueError(f'found "{text}", expected a duration such as 90s, 10m or 2h')
    return float(match[1]) * _UNITS[match[2] or "s"]
