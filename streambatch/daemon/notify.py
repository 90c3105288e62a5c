"""Tells systemd how a pipeline stands: ready, stopping, alive, and one line on how it gets on.

Speaks the protocol of sd_notify(3): datagrams of `NAME=VALUE` lines to the socket that NOTIFY_SOCKET names. The
watchdog is fed from what the pipeline did and by no timer of its own: a driver that is stuck starves it, a wait for
somebody else's outage does not. Without a NOTIFY_SOCKET nothing is said. A datagram that finds no room is said again
later, and one that can't be sent at all stops nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any, Protocol

import anyio
import structlog

from streambatch.core.clock import Clock
from streambatch.core.events import Observer, State
from streambatch.core.report import STUCK_SECONDS, Snapshot

STATUS_SECONDS = 5.0
"""Time between two lines on how it gets on."""
MARGIN_SECONDS = 10.0
"""What is asked for beyond the time that a stop may take: for the last sync, and for the process to end."""


class Observable(Protocol):
    """A pipeline, as far as its status goes."""

    def snapshot(self) -> Snapshot: ...


class Notifier(Observer):
    """One process's line to systemd; call it on the event loop, and run `keep` along with the pipeline.

    drain_seconds: how long a stop may take. environ: NOTIFY_SOCKET, and WATCHDOG_USEC and WATCHDOG_PID if there is a
    watchdog to feed.
    """

    def __init__(self, *, drain_seconds: float, clock: Clock, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog_seconds(environ)
        self.drain_seconds, self._clock = drain_seconds, clock
        self._log: Any = structlog.get_logger()
        self._owed: list[str] = []
        self._said: Snapshot | None = None
        self._is_lost = False

    @property
    def every_seconds(self) -> float:
        """How often `tell` is to be called: often enough for the status, and twice within the watchdog's time."""
        return min(STATUS_SECONDS, self._watchdog / 2)

    def state_changed(self, state: State) -> None:
        """Say at once that outputs are open and the pipeline runs, or that it has ended."""
        if state == "running":
            self._say("READY=1")
        elif state in ("stopped", "failed"):
            self._say("STOPPING=1", f"STATUS={state}")

    def stopping(self) -> None:
        """Say that a stop was asked for, and how long it may take."""
        self._say("STOPPING=1", _extension(self.drain_seconds + MARGIN_SECONDS), "STATUS=stopping")

    def reloading(self) -> None:
        """Say that the config is read again; `reloaded` has to follow."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={int(self._clock.monotonic() * 1e6)}")

    def reloaded(self) -> None:
        """Say that a reload is over, however it went."""
        self._say("READY=1")

    async def keep(self, pipeline: Observable) -> None:
        """Tell how the pipeline gets on until cancelled; return at once when nobody wants to know."""
        if self._address is None:
            return
        while True:
            self.tell(pipeline.snapshot())
            await anyio.sleep(self.every_seconds)

    def tell(self, snapshot: Snapshot) -> None:
        """Say how the pipeline stands at one moment, and that it lives, if it does."""
        lines = []
        is_stuck = bool(snapshot.stuck(STUCK_SECONDS))
        if not is_stuck:
            lines.append("WATCHDOG=1")
            if snapshot.state == "starting":  # an output that can't be opened is no reason to start again
                lines.append(_extension(STATUS_SECONDS + MARGIN_SECONDS))
        if is_stuck or self._said is None or snapshot.taken_at - self._said.taken_at >= STATUS_SECONDS:
            lines.append(f"STATUS={status_line(snapshot, self._said)}")
            self._said = snapshot
        self._say(*lines)

    def _say(self, *lines: str) -> None:
        if self._address is None:
            return
        # What is owed comes first; of what was said in vain only the last of its name still counts.
        names = {line.partition("=")[0] for line in lines}
        self._owed = [line for line in self._owed if line.partition("=")[0] not in names]
        self._owed += lines
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
                sock.sendto("\n".join(self._owed).encode(), self._address)
        except BlockingIOError:
            return
        except OSError as error:
            if not self._is_lost:
                self._log.warning("notify_failed", socket=self._address, error=str(error))
            self._is_lost = True
        self._owed = []


def status_line(snapshot: Snapshot, before: Snapshot | None) -> str:
    """Return where a pipeline stands in one line. before: an earlier moment, from which rates follow."""
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
        f"p99 {snapshot.latency['p99'] * 1000:,.0f} ms",
    ]
    text = f"{snapshot.state}: {', '.join(words)}"
    trouble = [f"{driver} is stuck" for driver in snapshot.stuck(STUCK_SECONDS)]
    if snapshot.state == "running":
        trouble += snapshot.not_ready
    return " ".join("; ".join([text, *trouble]).split())


def _address(text: str) -> str | None:
    """Return where to send to, for a path or, with `@`, a name in the abstract namespace; else None."""
    if text.startswith("@") and len(text) > 1:
        return f"\0{text[1:]}"
    return text if text.startswith("/") else None


def _watchdog_seconds(environ: Mapping[str, str]) -> float:
    """Return the time within which systemd wants to hear that the process lives; infinite without a watchdog."""
    pid, microseconds = environ.get("WATCHDOG_PID"), environ.get("WATCHDOG_USEC", "")
    if (pid is not None and pid != str(os.getpid())) or not microseconds.isdecimal() or not int(microseconds):
        return float("inf")
    return int(microseconds) / 1e6


def _extension(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}"
