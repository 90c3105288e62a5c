"""What the daemon says on stderr: one event and its fields a line, as JSON, or as text for a terminal.

What can happen at any rate is said a few times and then summed up, so that a flood of bad records never becomes a
flood of lines. Nothing here writes to stdout.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import Counter
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from streambatch.clock import Clock
from streambatch.events import FileEvent, Observer, Refusal, RejectedConnection, State

if TYPE_CHECKING:
    from streambatch.records import Batch, Outcome, Reason, Reject, Stage

LINES_MAX = 5
"""Lines of one kind within EVERY_SECONDS; what is beyond is counted in the next line."""
EVERY_SECONDS = 10.0

_LEVELS = {logging.WARNING: "warning", logging.ERROR: "error", logging.CRITICAL: "critical"}


class RateLimit:
    """Says which of many like events to tell of, and how many went untold. Pure."""

    def __init__(self, lines: int = LINES_MAX, every_seconds: float = EVERY_SECONDS) -> None:
        self._lines, self._every = lines, every_seconds
        self._windows: dict[Hashable, tuple[float, int, int]] = {}

    def admit(self, key: Hashable, now: float, count: int = 1) -> int | None:
        """Return the events of this key since the last that passed, this one included; None when it is not to pass."""
        started, told, untold = self._windows.get(key, (now, 0, 0))
        if now - started >= self._every:
            started, told = now, 0
        if told < self._lines:
            self._windows[key] = (started, told + 1, 0)
            return untold + count
        self._windows[key] = (started, told, untold + count)
        return None


class LogObserver(Observer):
    """Tells the log what happens in a pipeline."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._log = structlog.get_logger()
        self._limit = RateLimit()

    def state_changed(self, state: State) -> None:
        self._log.info("state_changed", state=state)

    def connection_rejected(self, source: str, reason: RejectedConnection) -> None:
        self._tell("connection_rejected", (source, reason), 1, "connections", source=source, reason=reason)

    def records_refused(self, source: str, records: int, reason: Refusal) -> None:
        self._tell("records_refused", (source, reason), records, "records", source=source, reason=reason)

    def file_changed(self, source: str, path: str, event: FileEvent) -> None:
        count = self._limit.admit(("file", source, event), self._clock.monotonic())
        if count is not None:
            self._log.info(f"file_{event}", source=source, path=path, **_beyond_one(count, "files"))

    def batch_written(self, batch: Batch, outcome: Outcome) -> None:
        if not outcome.rejects:
            return
        examples: dict[tuple[Stage, Reason], Reject] = {}
        counts: Counter[tuple[Stage, Reason]] = Counter()
        for reject in outcome.rejects:
            counts[reject.stage, reject.reason] += 1
            examples.setdefault((reject.stage, reject.reason), reject)
        for (stage, reason), reject in examples.items():
            self._tell(
                "dead_letters",
                (stage, reason),
                counts[stage, reason],
                "records",
                stage=stage,
                reason=reason,
                source=reject.partition.source,
                partition=reject.partition.name,
                position=reject.position,
                error=reject.error,
            )

    def sink_failed(self, sink: str, error: BaseException) -> None:
        self._tell("sink_failed", sink, 1, "times", sink=sink, error=str(error))

    def synced(self, seconds: float, *, ok: bool) -> None:
        if not ok:
            self._tell("sync_failed", None, 1, "times", seconds=round(seconds, 3))

    def _tell(self, event: str, key: Hashable, count: int, unit: str, **fields: Any) -> None:
        told = self._limit.admit((event, key), self._clock.monotonic(), count)
        if told is not None:
            self._log.warning(event, **{unit: told}, **fields)


def configure_logs(*, is_terminal: bool) -> None:
    """Send structlog's and the standard library's messages to stderr: text for a terminal, else lines of JSON."""
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_terminal else "iso", utc=not is_terminal)
    renderer: Any = _console_renderer() if is_terminal else structlog.processors.JSONRenderer(serializer=_as_json)
    trace = [] if is_terminal else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[structlog.processors.add_log_level, stamp, *trace, renderer],
        logger_factory=_Stderr,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


def stderr_is_terminal() -> bool:
    """Tell whether somebody looks at stderr; it is None in a process that was started without one."""
    return sys.stderr is not None and sys.stderr.isatty()


def _console_renderer() -> Any:
    return structlog.dev.ConsoleRenderer(
        colors=True, pad_event_to=20, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )


def _as_json(event: dict[str, Any], **_: Any) -> str:
    first = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return msgspec.json.encode({**first, **event}, enc_hook=str).decode()


class _Stderr:
    """Writes lines to whatever `sys.stderr` is at the moment: a progress bar puts itself in its place."""

    def __init__(self, *_: Any) -> None:
        return

    def msg(self, line: str) -> None:
        if sys.stderr is None:  # print would then turn to stdout
            return
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)

    debug = info = warning = error = critical = exception = msg


class _Forward(logging.Handler):
    """Passes what libraries log on to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        level = _LEVELS.get(record.levelno, "info")
        getattr(structlog.get_logger(), level)(
            record.getMessage(), logger=record.name, exc_info=record.exc_info or None
        )


def _beyond_one(count: int, unit: str) -> dict[str, int]:
    return {unit: count} if count > 1 else {}
