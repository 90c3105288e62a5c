"""Numbers, times and small drawings as the page shows them. Everything returned is HTML, escaped where need be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from streambatch.core.units import format_duration, format_size

NOTHING = "&ndash;"
LINE_WIDTH, LINE_HEIGHT = 120, 32
"""Of a sparkline, in its own units; a point is one unit wide."""


def text(value: object) -> str:
    """Return any text; a dash for none."""
    return NOTHING if value is None or value == "" else escape(str(value))


def count(number: float | None) -> str:
    """Return a count to the last one, or to four digits from ten millions on."""
    if number is None:
        return NOTHING
    return f"{number:,.0f}" if number < 10_000_000 else f"{number / 1e6:,.4g} M"


def rate(number: float | None) -> str:
    """Return a rate per second."""
    if number is None:
        return NOTHING
    return f"{number:,.1f}" if 0 < number < 10 else count(number)


def share(value: float | None) -> str:
    """Return a share in percent; one that is small is never shown as none."""
    if value is None:
        return NOTHING
    if 0 < value < 0.0001:
        return "&lt; 0.01 %"
    return f"{value:.2%}".replace("%", " %") if 0 < value < 0.01 else f"{value:.0%}".replace("%", " %")


def seconds(value: float | None) -> str:
    """Return a duration."""
    if value is None:
        return NOTHING
    return f"{value * 1e6:.0f} µs" if 0 < value < 0.0001 else format_duration(value)


def size(value: float | None) -> str:
    """Return bytes in a unit that keeps the number short."""
    if value is None:
        return NOTHING
    number, unit = format_size(value).split()
    return f"{float(f'{float(number):.3g}'):g} {unit}"


def moment(at: str | float | None, today: str | float | None = None) -> str:
    """Return a time in UTC, as the log has it, without the date if it is today's. at: wall seconds, or an ISO text."""
    if at is None:
        return NOTHING
    when = _utc(at)
    is_today = today is not None and _utc(today).date() == when.date()
    written = f"{when:%H:%M:%S}" if is_today else f"{when:%Y-%m-%d %H:%M:%S}"
    return f'<time datetime="{when.isoformat()}">{written}</time>'


def _utc(at: str | float) -> datetime:
    return datetime.fromtimestamp(at, UTC) if isinstance(at, int | float) else datetime.fromisoformat(at)


def digest(value: str | None) -> str:
    """Return the beginning of a digest, the rest on hover."""
    return f'<code title="{escape(value)}">{escape(value[:12])}</code>' if value else NOTHING


def bar(value: float | None, kind: str = "work") -> str:
    """Return a bar that is filled to a share; what it says stands beside it as a number."""
    width = 100 * min(1.0, max(0.0, value or 0.0))
    return (
        '<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="6"/><rect class="{kind}" width="{width:.1f}" height="6"/></svg>'
    )


def line(values: Sequence[float | None], *, top: float | None = None) -> str:
    """Return a line through the values, the newest at the right; it breaks where nothing was known."""
    highest = top or max((value for value in values if value is not None), default=0.0) or 1.0
    start = LINE_WIDTH - len(values) + 1
    runs: list[list[str]] = [[]]
    for at, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            drop = 1 + (LINE_HEIGHT - 2) * (1 - min(1.0, value / highest))
            runs[-1].append(f"{start + at} {drop:.1f}")
    drawn = "".join(f"M{'L'.join(points)}" for points in runs if len(points) > 1)
    return f'<path d="{drawn}"/>' if drawn else ""


def rows(table: Iterable[Sequence[str]], *, none: str, columns: int) -> str:
    """Return a table's body from cells that are HTML; the first of a row names it. none: what an empty one says."""
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'
        for first, *others in table
    )
    return body or f'<tr><td class="none" colspan="{columns}">{none}</td></tr>'


def items(texts: Iterable[str]) -> str:
    """Return the items of a list."""
    return "".join(f"<li>{one}</li>" for one in texts)
