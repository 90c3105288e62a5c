"""Sizes and durations as people write them: `64KiB`, `50ms`; plain numbers are bytes and seconds."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_SIZES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(value: object) -> int:
    """Return bytes from an int or a text such as `1MiB`. Raises ValueError that says what is allowed."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in _SIZES:
        raise ValueError("a size such as 512, 64KiB, 4MiB or 1GiB")
    return int(float(match[1]) * _SIZES[match[2]])


def parse_duration(value: object) -> float:
    """Return seconds from a number or a text such as `50ms`. Raises ValueError that says what is allowed."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in _SECONDS:
        raise ValueError("a duration such as 50ms, 1s, 5m, 2h or 30d")
    return float(match[1]) * _SECONDS[match[2]]


def format_size(size: float) -> str:
    """Return bytes in the largest unit that keeps the number at 1 or above: `1.5 MiB`."""
    for unit in ("GiB", "MiB", "KiB"):
        if size >= _SIZES[unit]:
            return f"{size / _SIZES[unit]:.4g} {unit}"
    return f"{size:.0f} B"


def format_duration(seconds: float) -> str:
    """Return seconds in a unit a person reads: `12 ms`, `3.4 s`, `2 h 5 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 90:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


Size = Annotated[int, BeforeValidator(parse_size), Field(json_schema_extra={"x-unit": "size"})]
"""Bytes; in a config also a text such as `64KiB`."""

Duration = Annotated[float, BeforeValidator(parse_duration), Field(json_schema_extra={"x-unit": "duration"})]
"""Seconds; in a config also a text such as `50ms`."""
