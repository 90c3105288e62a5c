"""Notify systemd that a pipeline is ready, stopping or alive, with one line of status.

This is the protocol of sd_notify(3): datagrams of `NAME=VALUE` lines to the socket in NOTIFY_SOCKET. Without that
variable nothing is sent. The watchdog is fed only while the drivers of the pipeline turn: a stuck driver starves it,
waiting out an outage elsewhere does not. A datagram for which the socket has no room is sent again later. An error of
the socket is logged and stops nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any, Protocol

import anyio
import structlog

from streambatch.core.clock import Clock
from streambatch.core.events import Observer, PipelineState
from streambatch.core.report import STUCK_SECONDS, Snapshot

STATUS_SECONDS = 5.0
"""Time between two status lines."""
MARGIN_SECONDS = 10.0
"""Time asked for beyond the drain timeout: for the last sync, and for the process to end."""


class Observable(Protocol):
    """A pipeline, as far as a Notifier needs it."""

    def snapshot(self) -> Snapshot: ...


class Notifier(Observer):
    """Sends notifications of one process. Call it on the event loop, and run `keep` beside the pipeline.

    drain_seconds: time that a stop may take. environ: holds NOTIFY_SOCKET, and with a watchdog WATCHDOG_USEC and
    WATCHDOG_PID.
    """

    def __init__(self, *, drain_seconds: float, clock: Clock, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog_seconds(environ)
        self.drain_seconds, self._clock = drain_seconds, clock
        self._log: Any = structlog.get_logger()
        self._unsent: list[str] = []
        self._reported: Snapshot | None = None
        self._is_lost = False

    @property
    def every_seconds(self) -> float:
        """Time between two calls of `report`: enough for the status, and for two calls within the watchdog's time."""
        return min(STATUS_SECONDS, self._watchdog / 2)

    def state_changed(self, state: PipelineState) -> None:
        """Notify at once that outputs are open and the pipeline runs, or that it has ended."""
        if state == "running":
            self._send("READY=1")
        elif state in ("stopped", "failed"):
            self._send("STOPPING=1", f"STATUS={state}")

    def stopping(self) -> None:
        """Notify that a stop began, and the time it may take."""
        self._send("STOPPING=1", _extension(self.drain_seconds + MARGIN_SECONDS), "STATUS=stopping")

    def reloading(self) -> None:
        """Notify that a reload began; `reloaded` must follow."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={int(self._clock.monotonic() * 1e6)}")

    def reloaded(self) -> None:
        """Notify that a reload ended, well or not."""
        self._send("READY=1")

    async def keep(self, pipeline: Observable) -> None:
        """Report regularly until cancelled; return at once without a NOTIFY_SOCKET."""
        if self._address is None:
            return
        while True:
            self.report(pipeline.snapshot())
            await anyio.sleep(self.every_seconds)

    def report(self, snapshot: Snapshot) -> None:
        """Send the status line if it is due, and feed the watchdog unless a driver is stuck."""
        lines = []
        # Only the watchdog line is left out: systemd then restarts the process after its own time.
        is_stuck = bool(snapshot.stuck(STUCK_SECONDS))
        if not is_stuck:
            lines.append("WATCHDOG=1")
            if snapshot.state == "starting":  # waiting for an output to open: a restart would not help
                lines.append(_extension(STATUS_SECONDS + MARGIN_SECONDS))
        if is_stuck or self._reported is None or snapshot.taken_at - self._reported.taken_at >= STATUS_SECONDS:
            lines.append(f"STATUS={status_line(snapshot, self._reported)}")
            self._reported = snapshot
        self._send(*lines)

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        # Unsent lines go first, and only the last one of each name: the newer value replaces the older.
        names = {line.partition("=")[0] for line in lines}
        self._unsent = [line for line in self._unsent if line.partition("=")[0] not in names]
        self._unsent += lines
        try:
            # A socket for each datagram: no descriptor stays open, and systemd may have restarted in between.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
                sock.sendto("\n".join(self._unsent).encode(), self._address)
        except BlockingIOError:
            return
        except OSError as error:
            if not self._is_lost:
                self._log.warning("notify_failed", socket=self._address, error=str(error))
            self._is_lost = True
        self._unsent = []


def status_line(snapshot: Snapshot, before: Snapshot | None) -> str:
    """Return the status of a pipeline as one line. before: an earlier snapshot, for the rates."""
    totals = snapshot.totals
    words = []
    if before is not None and (seconds := snapshot.taken_at - before.taken_at) > 0:
        came = (totals.received - before.totals.received) / seconds
        went = (totals.scored - before.totals.scored) / seconds
        words.append(f"{came:,.0f} records/s in, {went:,.0f} out")
    words += [
        f"{totals.scored:,} scored",
        f"{totals.dead_lettered:,} dead-lettered",
        f"{totals.unacked:,} unacked",
        f"p99 {snapshot.delivering.latency['p99'] * 1000:,.0f} ms",
    ]
    text = f"{snapshot.state}: {', '.join(words)}"
    trouble = [f"{driver} is stuck" for driver in snapshot.stuck(STUCK_SECONDS)]
    if snapshot.state == "running":
        trouble += snapshot.not_ready
    return " ".join("; ".join([text, *trouble]).split())


def _address(text: str) -> str | None:
    """Return the socket's address, for a path or, with `@`, an abstract name; None for anything else."""
    if text.startswith("@") and len(text) > 1:
        return f"\0{text[1:]}"
    return text if text.startswith("/") else None


def _watchdog_seconds(environ: Mapping[str, str]) -> float:
    """Return the watchdog's time in seconds; infinite without a watchdog for this process."""
    pid, microseconds = environ.get("WATCHDOG_PID"), environ.get("WATCHDOG_USEC", "")
    if (pid is not None and pid != str(os.getpid())) or not microseconds.isdecimal() or not int(microseconds):
        return float("inf")
    return int(microseconds) / 1e6


def _extension(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}"
