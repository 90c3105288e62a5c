"""What systemd hears: ready when outputs are open, alive while the pipeline gets on, stopping when it stops."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from streambatch.core.report import Counts, DriverState
from streambatch.daemon.notify import STATUS_SECONDS, Notifier, status_line
from tests.moved_clock import MovedClock
from tests.snapshots import FakePipeline, snapshot_of

STUCK = {name: DriverState(60.0, None if name == "score" else "input") for name in ("batch", "score", "sink")}
"""Forty seconds before QUIET was taken, a worker turned last."""


class Listener:
    """A socket as systemd opens it."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def heard(self) -> dict[str, str]:
        """Return the next datagram's values by name."""
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().split("\n"))


@contextmanager
def listening(address: str) -> Iterator[Listener]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.settimeout(10)
        yield Listener(sock)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with listening(str(tmp_path / "notify.sock")) as one:
        yield one


def notifier_to(listener: Listener, watchdog: str | None = None, **environ: str) -> Notifier:
    found = {"NOTIFY_SOCKET": listener.socket.getsockname(), **environ}
    if watchdog is not None:
        found["WATCHDOG_USEC"] = watchdog
    return Notifier(drain_seconds=20.0, clock=MovedClock(), environ=found)


def test_ready_is_said_when_it_runs_and_not_before(listener: Listener) -> None:
    notifier = notifier_to(listener)
    notifier.state_changed("starting")
    notifier.state_changed("running")
    assert listener.heard() == {"READY": "1"}


def test_an_abstract_socket() -> None:
    name = f"streambatch-test-{os.getpid()}"
    with listening(f"\0{name}") as listener:
        notifier = Notifier(drain_seconds=20.0, clock=MovedClock(), environ={"NOTIFY_SOCKET": f"@{name}"})
        notifier.state_changed("running")
        assert listener.heard() == {"READY": "1"}


def test_an_asked_stop_says_how_long_it_may_take(listener: Listener) -> None:
    notifier_to(listener).stopping()
    assert listener.heard() == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "30000000", "STATUS": "stopping"}


def test_the_end_of_the_input_is_no_stop_until_all_is_out(listener: Listener) -> None:
    """systemd would give what is queued no longer than TimeoutStopSec."""
    notifier = notifier_to(listener)
    notifier.state_changed("draining")
    notifier.state_changed("stopped")
    assert listener.heard() == {"STOPPING": "1", "STATUS": "stopped"}


def test_a_reload_says_since_when(listener: Listener) -> None:
    clock = MovedClock()
    environ = {"NOTIFY_SOCKET": listener.socket.getsockname()}
    notifier = Notifier(drain_seconds=20.0, clock=clock, environ=environ)
    notifier.reloading()
    notifier.reloaded()
    assert listener.heard() == {"RELOADING": "1", "MONOTONIC_USEC": str(int(clock.monotonic() * 1e6))}
    assert listener.heard() == {"READY": "1"}


def test_a_stuck_driver_starves_the_watchdog(listener: Listener) -> None:
    notifier = notifier_to(listener, watchdog="60000000")
    notifier.report(snapshot_of())
    notifier.report(snapshot_of(drivers=STUCK))
    assert listener.heard()["WATCHDOG"] == "1"
    starved = listener.heard()
    assert "WATCHDOG" not in starved
    assert starved["STATUS"].endswith("; score is stuck")


def test_an_outage_elsewhere_does_not(listener: Listener) -> None:
    waits = {"batch": "backpressure", "score": "model", "sink": "retry"}
    drivers = {name: DriverState(0.0, parked) for name, parked in waits.items()}
    notifier_to(listener).report(snapshot_of(drivers=drivers, not_ready=["sink scores: connection refused"]))
    heard = listener.heard()
    assert heard["WATCHDOG"] == "1"
    assert heard["STATUS"].endswith("; sink scores: connection refused")


def test_an_output_that_can_not_be_opened_yet_is_given_time(listener: Listener) -> None:
    notifier = notifier_to(listener)
    notifier.report(snapshot_of(state="starting"))
    assert int(listener.heard()["EXTEND_TIMEOUT_USEC"]) > 2 * STATUS_SECONDS * 1e6
    notifier.report(snapshot_of(state="starting", drivers=STUCK))
    assert "EXTEND_TIMEOUT_USEC" not in listener.heard()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, STATUS_SECONDS),
        ({"WATCHDOG_USEC": "4000000"}, 2.0),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())}, 2.0),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}, STATUS_SECONDS),
        ({"WATCHDOG_USEC": "60000000"}, STATUS_SECONDS),
        ({"WATCHDOG_USEC": "0"}, STATUS_SECONDS),
        ({"WATCHDOG_USEC": "soon"}, STATUS_SECONDS),
    ],
)
def test_the_watchdog_is_fed_twice_within_its_time(listener: Listener, environ: dict[str, str], seconds: float) -> None:
    assert notifier_to(listener, **environ).every_seconds == seconds


def test_the_status_is_said_every_few_seconds_and_the_watchdog_fed_between(listener: Listener) -> None:
    notifier = notifier_to(listener, watchdog="2000000")
    for second in range(7):
        notifier.report(snapshot_of(taken_at=100.0 + second))
    heard = [listener.heard() for _ in range(7)]
    assert all("WATCHDOG" in one for one in heard)
    assert [at for at, one in enumerate(heard) if "STATUS" in one] == [0, 5]


def test_the_status_line() -> None:
    before = snapshot_of()
    counts = Counts(received=20_000, scored=15_000, dead_lettered=10, unacked=4_990)
    now = snapshot_of(taken_at=105.0, sources={"rides_in": counts}, not_ready=["sink scores:\nno space left"])
    assert status_line(before, None) == "running: 0 scored, 0 dead-lettered, 0 unacked, p99 0 ms"
    assert status_line(now, before) == (
        "running: 4,000 records/s in, 3,000 out, 15,000 scored, 10 dead-lettered, 4,990 unacked, p99 0 ms; "
        "sink scores: no space left"
    )


def test_what_finds_no_room_is_said_later(listener: Listener) -> None:
    notifier = notifier_to(listener)
    flooded = flood(listener)
    notifier.state_changed("running")
    notifier.report(snapshot_of())
    for _ in range(flooded):
        assert listener.heard() == {"FLOOD": "1"}
    notifier.report(snapshot_of(taken_at=106.0))
    heard = listener.heard()
    assert heard["READY"] == heard["WATCHDOG"] == "1"
    assert heard["STATUS"].startswith("running: 0 records/s in")


def flood(listener: Listener) -> int:
    """Fill a listener's queue and return with how many datagrams."""
    sent = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        with pytest.raises(BlockingIOError):
            while True:
                sock.sendto(b"FLOOD=1", listener.socket.getsockname())
                sent += 1
    return sent


@pytest.mark.parametrize("address", ["", "/nowhere/notify.sock", "vsock:2:1234", "@"])
def test_nobody_who_listens_stops_nothing(address: str) -> None:
    notifier = Notifier(drain_seconds=20.0, clock=MovedClock(), environ={"NOTIFY_SOCKET": address})
    notifier.state_changed("running")
    notifier.report(snapshot_of())


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_it_goes_on_telling_until_cancelled(listener: Listener) -> None:
    notifier = notifier_to(listener, watchdog="4000000")
    pipeline = FakePipeline()
    with anyio.move_on_after(9.0):
        await notifier.keep(pipeline)
    assert pipeline.snapshots == 5
    assert [listener.heard()["WATCHDOG"] for _ in range(5)] == ["1"] * 5
