"""Log to stderr: one event with its fields a line, as JSON, or as text for a terminal.

Events that can come at any rate are logged a few times and then summed up, so that a flood of bad records never becomes
a flood of lines. Values that look like secrets are redacted. Nothing here writes to stdout.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import Counter
from collections.abc import Hashable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import structlog

from streambatch.core.clock import Clock, SystemClock
from streambatch.core.events import FileEvent, Observer, PipelineState, Refusal, RejectedConnection
from streambatch.core.redaction import REDACTED, looks_secret, redacted
from streambatch.core.text import encodable

if TYPE_CHECKING:
    from streambatch.core.batches import Batch
    from streambatch.core.chunks import Reason
    from streambatch.core.outcomes import Outcome, Reject, Stage

LINES_MAX = 5
"""Lines of one kind within EVERY_SECONDS; further events are counted in the next line."""
EVERY_SECONDS = 10.0
KINDS_MAX = 1000
"""Kinds of lines that are counted apart; bounded, since a library may log a new text each time."""

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "text"]
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_LEVELS = {logging.WARNING: "warning", logging.ERROR: "error", logging.CRITICAL: "critical"}


@dataclass(frozen=True)
class LogOptions:
    """level: the lowest one that is logged. format: `auto` is text for a terminal and JSON otherwise."""

    level: LogLevel = "info"
    format: LogFormat = "auto"


class RateLimit:
    """Decides which of many like events to log, and counts the others. Pure."""

    def __init__(self, lines: int = LINES_MAX, every_seconds: float = EVERY_SECONDS) -> None:
        self._lines, self._every = lines, every_seconds
        self._windows: dict[Hashable, tuple[float, int, int]] = {}

    def admit(self, key: Hashable, now: float, count: int = 1) -> int | None:
        """Return the events of this key since the last logged one, with this one; None if it is not to be logged."""
        started, logged, held_back = self._windows.get(key, (now, 0, 0))
        if now - started >= self._every:
            started, logged = now, 0
        if key not in self._windows and len(self._windows) >= KINDS_MAX:
            del self._windows[next(iter(self._windows))]
        if logged < self._lines:
            self._windows[key] = (started, logged + 1, 0)
            return held_back + count
        self._windows[key] = (started, logged, held_back + count)
        return None


class LogObserver(Observer):
    """Logs the events of a pipeline."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._log = structlog.get_logger()
        self._limit = RateLimit()
        self._is_unsynced = False

    def state_changed(self, state: PipelineState) -> None:
        self._log.info("state_changed", state=state)

    def connection_rejected(self, source: str, reason: RejectedConnection) -> None:
        self._log_limited("connection_rejected", (source, reason), 1, "connections", source=source, reason=reason)

    def records_refused(self, source: str, records: int, reason: Refusal) -> None:
        self._log_limited("records_refused", (source, reason), records, "records", source=source, reason=reason)

    def records_recovered(self, source: str, records: int) -> None:
        self._log_limited("records_recovered", source, records, "records", level="info", source=source)

    def datagrams_dropped(self, source: str, count: int) -> None:
        self._log_limited("datagrams_dropped", source, count, "datagrams", source=source)

    def source_failed(self, source: str, error: BaseException) -> None:
        self._log_limited("source_failed", source, 1, "times", source=source, error=str(error))

    def source_recovered(self, source: str) -> None:
        self._log_limited("source_recovered", source, 1, "times", level="info", source=source)

    def file_changed(self, source: str, path: str, event: FileEvent) -> None:
        count = self._limit.admit(("file", source, event), self._clock.monotonic())
        if count is not None:
            self._log.info(f"file_{event}", source=source, path=path, **_beyond_one(count, "files"))

    def batch_written(self, batch: Batch, outcome: Outcome) -> None:
        if not outcome.rejects:
            return
        # One line for each reason in a batch, with its first record as the example.
        examples: dict[tuple[Stage, Reason], Reject] = {}
        counts: Counter[tuple[Stage, Reason]] = Counter()
        for reject in outcome.rejects:
            counts[reject.stage, reject.reason] += 1
            examples.setdefault((reject.stage, reject.reason), reject)
        for (stage, reason), reject in examples.items():
            self._log_limited(
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
        self._log_limited("sink_failed", sink, 1, "times", sink=sink, error=str(error))

    def sink_retried(self, sink: str) -> None:
        self._log_limited("sink_retried", sink, 1, "times", level="debug", sink=sink)

    def sink_recovered(self, sink: str) -> None:
        self._log_limited("sink_recovered", sink, 1, "times", level="info", sink=sink)

    def synced(self, seconds: float, *, ok: bool) -> None:
        if not ok:
            self._log_limited("sync_failed", None, 1, "times", seconds=round(seconds, 3))
        elif self._is_unsynced:
            self._log_limited("sync_recovered", None, 1, "times", level="info", seconds=round(seconds, 3))
        self._is_unsynced = not ok

    def _log_limited(
        self, event: str, key: Hashable, count: int, unit: str, *, level: LogLevel = "warning", **fields: Any
    ) -> None:
        total = self._limit.admit((event, key), self._clock.monotonic(), count)
        if total is not None:
            getattr(self._log, level)(event, **{unit: total}, **fields)


def configure_logs(*, is_terminal: bool, options: LogOptions | None = None) -> Mapping[str, int]:
    """Send structlog's and the standard library's messages to stderr: text for a terminal, else lines of JSON.

    Returns the number of lines logged by level, a mapping that goes on counting.
    """
    options = options or LogOptions()
    is_text = is_terminal if options.format == "auto" else options.format == "text"
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_terminal else "iso", utc=not is_terminal)
    text: Any = [_without_controls, _console_renderer(has_colors=is_terminal)]
    counting = _Counting()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            counting,
            stamp,
            structlog.processors.format_exc_info,
            _without_secrets,
            *(text if is_text else [structlog.processors.JSONRenderer(serializer=_as_json)]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(options.level),
        logger_factory=_Stderr,
        cache_logger_on_first_use=False,
    )
    # Libraries log too much below warnings.
    level = max(logging.WARNING, getattr(logging, options.level.upper()))
    logging.basicConfig(handlers=[_Forward()], level=level, force=True)
    return counting.messages


def stderr_is_terminal() -> bool:
    """Whether stderr is a terminal. It is None in a process that was started without one."""
    return sys.stderr is not None and sys.stderr.isatty()


def _console_renderer(*, has_colors: bool) -> Any:
    return structlog.dev.ConsoleRenderer(
        colors=has_colors, pad_event_to=20, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )


class _Counting:
    """Counts log lines by level."""

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        self.messages[event["level"]] += 1
        return event


def _without_secrets(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        event[key] = REDACTED if looks_secret(key) else _redacted(value)
    return event


def _redacted(value: Any) -> Any:
    """Return a value as plain data without secrets and with encodable texts; other objects become their text."""
    if isinstance(value, str):
        return redacted(encodable(value))
    if isinstance(value, Mapping):
        return {key: REDACTED if looks_secret(str(key)) else _redacted(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float) else _redacted(str(value))


def _without_controls(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape control characters, which a record or a client could steer the terminal with."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            event[key] = value.translate(_CONTROLS)
    return event


def _as_json(event: dict[str, Any], **_: Any) -> str:
    first = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return msgspec.json.encode({**first, **event}, enc_hook=str).decode()


class _Stderr:
    """Writes lines to the current `sys.stderr`, which a progress bar replaces while it is shown."""

    def __init__(self, *_: Any) -> None:
        return

    def msg(self, line: str) -> None:
        if sys.stderr is None:  # print would write to stdout
            return
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)

    debug = info = warning = error = critical = exception = msg


class _Forward(logging.Handler):
    """Passes log records of libraries on to structlog. A record may have attributes `event` and `fields`."""

    def __init__(self) -> None:
        super().__init__()
        self._limit, self._clock = RateLimit(), SystemClock()

    def emit(self, record: logging.LogRecord) -> None:
        count = self._limit.admit((record.name, str(record.msg)), self._clock.monotonic())
        if count is None:
            return
        level = _LEVELS.get(record.levelno, "info")
        fields = {**getattr(record, "fields", {}), **_beyond_one(count, "times")}
        event = getattr(record, "event", None) or record.getMessage()
        getattr(structlog.get_logger(), level)(event, **fields, logger=record.name, exc_info=record.exc_info or None)


def _beyond_one(count: int, unit: str) -> dict[str, int]:
    return {unit: count} if count > 1 else {}
