"""What systemd hears from a real daemon: a blocked pipeline starves the watchdog, an outage elsewhere feeds it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import PATIENCE_SECONDS, running

pytestmark = pytest.mark.slow

FEEDS_SECONDS = 0.1
SILENCE_SECONDS = 10 * FEEDS_SECONDS
CONFIG = """
name = "rides"
source.live = { type = "tcp", listen = "127.0.0.1:0" }
record = { features = "x", shape = [1] }
http = { listen = "127.0.0.1:0" }
model = { type = "python", path = "model:Blocking" }
workers = { executor = "inline" }
batch = { max_wait = "1ms" }
"""
MODEL = """
import pathlib, time

class Blocking:
    def score(self, x):
        if x.any():
            pathlib.Path("blocked").touch()
            while not pathlib.Path("go").exists():
                time.sleep(0.01)  # it blocks, but ends when the test says so
        return x[:, 0]
"""


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    (tmp_path / "model.py").write_text(MODEL)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify.sock"))
        sock.settimeout(PATIENCE_SECONDS)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify.sock"))
        monkeypatch.setenv("WATCHDOG_USEC", str(int(2 * FEEDS_SECONDS * 1e6)))
        yield sock


def wait_for(systemd: socket.socket, line: str, times: int = 1) -> None:
    """Wait until a line was heard so often."""
    while times:
        times -= line in systemd.recv(4096).decode().split("\n")


def drain(systemd: socket.socket) -> None:
    """Forget what was said so far."""
    systemd.settimeout(0)
    try:
        while True:
            systemd.recv(4096)
    except BlockingIOError:
        systemd.settimeout(PATIENCE_SECONDS)


def test_a_blocked_pipeline_starves_the_watchdog(tmp_path: Path, systemd: socket.socket) -> None:
    with running(tmp_path, CONFIG + 'sink.scores = { type = "none" }') as daemon:
        wait_for(systemd, "READY=1")
        wait_for(systemd, "WATCHDOG=1", times=3)
        with socket.create_connection(daemon.address("live")) as client:
            client.sendall(b'{"x": [1]}\n')
            daemon.until((tmp_path / "blocked").exists, "the model was called")
            drain(systemd)
            systemd.settimeout(SILENCE_SECONDS)
            with pytest.raises(TimeoutError):
                systemd.recv(4096)
            (tmp_path / "go").touch()
            systemd.settimeout(PATIENCE_SECONDS)
            wait_for(systemd, "WATCHDOG=1", times=3)
        assert daemon.stop() == 0


def test_an_outage_elsewhere_feeds_it_and_ready_waits_for_its_end(tmp_path: Path, systemd: socket.socket) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # and refuses, as it doesn't listen
        sink = f'sink.scores = {{ type = "tcp", address = "127.0.0.1:{server.getsockname()[1]}" }}\n'
        with running(tmp_path, CONFIG + sink) as daemon:
            daemon.until(lambda: b"scores" in daemon.get("/readyz")[1], "the sink is out")
            heard: list[str] = []
            while heard.count("WATCHDOG=1") < 20:
                heard += systemd.recv(4096).decode().split("\n")
            assert "READY=1" not in heard
            assert sum(line.startswith("EXTEND_TIMEOUT_USEC=") for line in heard) >= 20
            server.listen()
            wait_for(systemd, "READY=1")
            assert daemon.stop() == 0, daemon.rest()
        wait_for(systemd, "STOPPING=1")
