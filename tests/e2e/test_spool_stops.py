"""A stop while a spool is full and its sink down ends by its deadline; what was answered comes with the next run."""

from __future__ import annotations

import json
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.ports import held_port
from tests.e2e.running import PATIENCE_SECONDS, Daemon, running, scores_in

pytestmark = pytest.mark.slow
FILE = 'type = "file"\npath = "scores.jsonl"'
RECORDS = 2000
"""What a client posts: a fifth of the spool."""
FULL = 3_000_000
"""More than three requests: the fourth is there, and has to wait."""


def config(kind: str, sink: str, drain_timeout: str = "1s") -> str:
    return f"""
        name = "spooling"
        state_dir = "state"
        [source.in]
        type = "{kind}"
        listen = "127.0.0.1:0"
        max_record_bytes = "64KiB"
        spool = {{max_bytes = "4MiB"}}
        {'max_body_bytes = "1MiB"' if kind == "http" else ""}
        [record]
        id = "id"
        features = "x"
        shape = [2]
        [limits]
        memory = "16MiB"
        [delivery]
        drain_timeout = "{drain_timeout}"
        [model]
        type = "linear"
        path = "model.npz"
        [sink.scores]
        {sink}
        [http]
        listen = "127.0.0.1:0"
        """


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "model.npz", weights=np.ones(2, np.float32), bias=0.0)
    return tmp_path


def records(count: int) -> bytes:
    return b"".join(b'{"id": %d, "x": [1, 1], "more": "%s"}\n' % (at, b"x" * 400) for at in range(count))


def spool_bytes(daemon: Daemon) -> float:
    """Return how large the spool is."""
    lines = daemon.get("/metrics")[1].decode().splitlines()
    return max((float(line.split()[-1]) for line in lines if line.startswith("streambatch_spool_bytes{")), default=0.0)


@contextmanager
def client(daemon: Daemon, kind: str, answered: list[int]) -> Iterator[None]:
    """Send until the spool is full, and go on until the daemon has ended."""
    host, port = daemon.address("in")

    def post() -> None:
        with suppress(OSError):
            while True:
                url = f"http://{host}:{port}/records"
                with urllib.request.urlopen(url, records(RECORDS), timeout=PATIENCE_SECONDS) as answer:
                    answered.append(json.load(answer)["received"])

    def send() -> None:
        with suppress(OSError), socket.create_connection((host, port), timeout=PATIENCE_SECONDS) as connection:
            while True:
                connection.sendall(records(100))

    thread = threading.Thread(target=post if kind == "http" else send)
    thread.start()
    daemon.until(lambda: spool_bytes(daemon) > FULL, "the spool is full")
    yield
    thread.join()


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_past_its_deadline_a_stop_ends_while_a_spool_is_full(folder: Path, kind: str) -> None:
    answered: list[int] = []
    with (
        held_port() as port,
        running(folder, config(kind, f'type = "http"\nurl = "http://127.0.0.1:{port}/"')) as daemon,
        client(daemon, kind, answered),
    ):
        assert daemon.stop() == 3
    received = daemon.report["records"]["received"]
    assert received >= sum(answered)
    with running(folder, config(kind, FILE, "60s")) as daemon:
        daemon.until(lambda: daemon.status()["records"]["scored"] == received, "what was received is scored")
        assert daemon.stop() == 0
    assert len(scores_in(folder / "scores.jsonl")) == received
    if kind == "http":
        assert received == sum(answered)


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_a_second_signal_stops_hard_while_a_spool_is_full(folder: Path, kind: str) -> None:
    with (
        held_port() as port,
        running(folder, config(kind, f'type = "http"\nurl = "http://127.0.0.1:{port}/"', "1h")) as daemon,
        client(daemon, kind, []),
    ):
        daemon.process.send_signal(signal.SIGTERM)
        daemon.event("stopping")
        assert daemon.stop() == 3
