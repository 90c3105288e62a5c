"""Draw views of daemons (see ops/live_view.py) for a terminal of any width. No IO and no waiting.

Green means well, yellow means worth a look, red means wrong; everything else has no colour. Texts from a daemon are
shown without control characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from streambatch.core.units import format_duration, format_size
from streambatch.ops.live_view import View

BARS = "▁▂▃▄▅▆▇"
"""None is of full height, which would touch the line above."""
HALF_FULL, FULL = 0.5, 0.9
"""The fills from which a figure is yellow, and red."""
_STATES = {"running": "green", "starting": "yellow", "draining": "yellow", "stopped": "red", "failed": "red"}
_PART_MIN = 0.01
_NAME_WIDTH, _FIGURES_WIDTH = 9, 42


def draw(views: Sequence[View], width: int, height: int | None) -> RenderableType:
    """Return the picture for a terminal of this size: one daemon in detail, several in a table."""
    if len(views) == 1:
        shown: RenderableType = _panel(views[0], width, height)
    else:
        shown = Group(_table(views, width), *_notes(views))
    return shown if height is None else Group(shown, Text("q quits", style="dim"))


def sparkline(values: Sequence[float | None], width: int, top: float | None = None) -> str:
    """Return the last `width` values as bars from 0 to `top`, or to the largest value. None is a space."""
    shown = values[-width:] if width > 0 else []
    largest = top or max((value for value in shown if value is not None), default=0.0)
    return "".join(" " if value is None else _bar(value, largest) for value in shown).rjust(max(0, width))


def _bar(value: float, largest: float) -> str:
    return BARS[min(len(BARS) - 1, int(value / largest * len(BARS)))] if largest > 0 else BARS[0]


def _panel(view: View, width: int, height: int | None) -> RenderableType:
    title = Text.assemble((_plain(view["pipeline"] or view["url"]), "bold"), "  ", _state(view), style="not dim")
    inner = max(20, width - 4)
    lines: list[Text] = []
    if view["down"]:
        lines += [_down(view).append("; below is what was last known" if view["run"] else ""), Text()]
    if view["run"]:
        lines += [*_figures(view, inner), Text(), *_verdict(view), *_lists(view, inner)]
    elif not view["down"]:
        lines.append(Text("waiting for its first status", style="dim"))
    if height is not None:
        lines = _fitting(lines, inner, height - 4)
    return Panel(Group(*lines), title=title, title_align="left", border_style="red" if view["down"] else "dim")


def _fitting(lines: list[Text], width: int, height: int) -> list[Text]:
    """Return the lines that fit, counting how many rows each takes when wrapped."""
    room, kept = height, []
    for line in lines:
        # Rounded up, and at least one: an empty line takes a row too.
        room -= max(1, -(-line.cell_len // width))
        if room < 0:
            break
        kept.append(line)
    return kept


def _state(view: View) -> Text:
    if view["down"]:
        return Text("down", style="bold red")
    state = view["state"] or "?"
    text = Text(state, style=_STATES.get(state, ""))
    if view["not_ready"]:
        text.append("  " + _plain("; ".join(view["not_ready"])), style="yellow")
    return text


def _down(view: View) -> Text:
    since = datetime.fromtimestamp(view["down"]["since"]).strftime("%H:%M:%S")
    return Text(f"down since {since}: {_plain(view['down']['error'])} ({view['url']})", style="red")


def _figures(view: View, width: int) -> Iterator[Text]:
    rates, history, queue = view["rates"], view["history"], view["queue"]
    yield _row("in", f"{_rate(rates['received'])}  {format_size(rates['bytes'])}/s", history["received"], width)
    yield _row("scored", f"{_rate(rates['scored'])}  {view['records']['scored']:,} in all", history["scored"], width)
    dead = f"{_rate(rates['dead_lettered'])}  {view['records']['dead_lettered']:,} in all"
    style = "yellow" if rates["dead_lettered"] else ""
    yield _row("dead", dead, history["dead_lettered"], width, style=style)
    yield _row("latency", _latency(view), history["p99"], width)
    fill = f"{queue['fill']:4.0%}  {queue['records']:,} of {queue['capacity_records']:,}"
    yield _row("queue", fill, history["queue_fill"], width, style=_fill_style(queue["fill"]), top=1.0)
    process = view["process"]
    memory = f"  {format_size(process['rss_bytes'])}" if process["rss_bytes"] else ""
    yield _row(
        "cpu", f"{process['cores']:.2f} of {process['cpus']}{memory}", history["cores"], width, top=process["cpus"]
    )
    yield _batch(view)
    yield _stages(view)
    yield _parts(view)
    yield Text()
    yield _about(view)


def _row(
    name: str, figures: str, history: Sequence[float | None], width: int, *, style: str = "", top: float | None = None
) -> Text:
    bars = width - _NAME_WIDTH - _FIGURES_WIDTH
    line = _named(name).append(f"{figures:<{_FIGURES_WIDTH}}", style)
    return line.append(sparkline(history, bars, top), style="cyan") if bars >= 8 else line


def _named(name: str) -> Text:
    """Return the beginning of a line: its name."""
    return Text.assemble((f"{name:<{_NAME_WIDTH}}", "dim"))


def _latency(view: View) -> str:
    latency = view["latency_seconds"]
    if latency["p50"] is None:
        return "no record written"
    return "  ".join(f"{name} {format_duration(latency[name])}" for name in ("p50", "p95", "p99"))


def _batch(view: View) -> Text:
    batch, line = view["batch"], _named("batch")
    triggers = sorted(batch["triggers"].items(), key=lambda each: -each[1]) if batch else []
    closed_by = "  ".join(f"{name} {share:.0%}" for name, share in triggers if share > 0)
    if not closed_by:
        return line.append("none of late")
    mean, most = batch["mean_records"], batch["max_records"]
    return line.append(f"{mean:,.0f} of {most:,} records, closed by {closed_by}")


def _stages(view: View) -> Text:
    line = _named("busy")
    for stage in view["stages"]:
        busy = stage["busy"]
        line.append(f"{stage['stage']} {busy:.0%}  ", style=_fill_style(busy) or ("" if busy >= _PART_MIN else "dim"))
    line.rstrip()
    return line


def _parts(view: View) -> Text:
    parts = sorted(view["latency_parts"], key=lambda part: -part["share"])[:5]
    shown = [f"{part['part'].replace('_', ' ')} {part['share']:.0%}" for part in parts if part["share"] >= _PART_MIN]
    return _named("spent on").append("  ".join(shown) or "nothing yet")


def _about(view: View) -> Text:
    model = view["model"]
    model_digest = (model["digest"] or "-").removeprefix("sha256:")[:12]
    config_digest = (view["config_digest"] or "-")[:12]
    up = format_duration(view["uptime_seconds"])
    text = f"model {model['format']} {model_digest}  config {config_digest}  {view['version']}  up {up}"
    return Text(_plain(text), style="dim")


def _verdict(view: View) -> Iterator[Text]:
    verdict = view["verdict"]
    if verdict is None:
        return
    is_well = verdict["stage"] == "nothing"
    yield Text(_plain(verdict["sentence"]), style="green" if is_well else "bold yellow")
    if (knob := verdict["knob"]) is not None:
        yield Text(_plain(f"turn     {_turn(knob)}"), style="bold")
    yield Text(_plain(f"because  {'; '.join(verdict['evidence'])}"), style="dim")


def _turn(knob: dict[str, Any]) -> str:
    return f"{knob['key']}: {knob['now']} -> {knob['to']}"


def _lists(view: View, width: int) -> Iterator[Text]:
    for error in view["errors"][:3]:
        times = f" ({error['times']} times)" if error["times"] > 1 else ""
        over = "" if error["over_at"] is None else f", over at {_clock(error['over_at'])}"
        text = f"{_clock(error['at'])} {error['where']}: {error['error']}{times}{over}"
        yield _cut(text, width, "dim" if error["over_at"] else "red")
    for dead in view["dead_letters"][:3]:
        place = f"{dead['partition']}:{dead['position']}"
        yield _cut(f"{_clock(dead['at'])} dead in {dead['stage']}: {dead['error']} ({place})", width, "yellow")
    for run in [past for past in view["runs"] if past["run"] != view["run"]][:3]:
        counts = run["records"]
        error = f": {run['error']}" if run["error"] else ""
        text = f"run {run['run']} {run['why']}, {counts['scored']:,} scored, {counts['dead_lettered']:,} dead{error}"
        yield _cut(text, width, "dim")


def _table(views: Sequence[View], width: int) -> Table:
    table = Table(expand=True, box=None, padding=(0, 1), header_style="dim")
    table.add_column("pipeline", no_wrap=True, overflow="ellipsis", ratio=2)
    for name in ("in/s", "scored/s", "dead/s", "p99", "queue"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("limits", no_wrap=True)
    if width >= 100:
        table.add_column("scored", no_wrap=True, ratio=2)
    for view in views:
        table.add_row(*_cells(view, max(0, (width - 70) // 2) if width >= 100 else 0))
    return table


def _cells(view: View, bars: int) -> list[Text]:
    name = Text(_plain(view["pipeline"] or view["url"]), style=_STATES.get(view["state"] or "", ""))
    if not view["is_up"]:
        why = "down" if view["down"] else "..."
        cells = [Text("-")] * 5 + [Text(why, style="red")]
        return [name, *cells, *([Text()] if bars else [])]
    rates, p99, fill = view["rates"], view["latency_seconds"]["p99"], view["queue"]["fill"]
    verdict = view["verdict"]
    cells = [
        name,
        Text(f"{rates['received']:,.0f}"),
        Text(f"{rates['scored']:,.0f}"),
        Text(f"{rates['dead_lettered']:,.3g}", style="yellow" if rates["dead_lettered"] else ""),
        Text("-" if p99 is None else format_duration(p99)),
        Text(f"{fill:.0%}", style=_fill_style(fill)),
        Text("-" if verdict is None else verdict["stage"]),
    ]
    return [*cells, Text(sparkline(view["history"]["scored"], bars), style="cyan")] if bars else cells


def _notes(views: Sequence[View]) -> Iterator[Text]:
    """Yield the notes that a table has no room for: errors, reasons for not being ready, knobs to turn."""
    yield Text()
    for view in views:
        name = _plain(view["pipeline"] or view["url"])
        if view["down"]:
            yield Text.assemble((f"{name}: ", "bold"), _down(view))
        elif view["not_ready"]:
            yield Text.assemble((f"{name}: ", "bold"), _state(view))
        elif view["verdict"] and view["verdict"]["knob"]:
            yield Text.assemble((f"{name}: ", "bold"), _plain(f"turn {_turn(view['verdict']['knob'])}"))


def _cut(text: str, width: int, style: str) -> Text:
    line = Text(_plain(text), style=style, no_wrap=True)
    line.truncate(width, overflow="ellipsis")
    return line


def _fill_style(share: float) -> str:
    return "red" if share >= FULL else "yellow" if share >= HALF_FULL else ""


def _rate(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 or not rate else f"{rate:.2g}/s"


def _clock(date: str) -> str:
    return datetime.fromisoformat(date).astimezone().strftime("%H:%M:%S")


def _plain(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)
