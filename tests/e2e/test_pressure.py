"""Under pressure: a sink that takes nothing, clients that hold back, a stop in the middle of it all."""

import json
import signal
import socket
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.running import Daemon, is_balanced, running, scores_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
MIB = 1 << 20


def config(sink: str, memory: str = "64MiB", extra: str = "") -> str:
    return f"""
        name = "pressure"
        [source.tcp]
        type = "tcp"
        listen = "127.0.0.1:0"
        max_connections = 2000
        {extra}
        [record]
        id = "id"
        features = "x"
        shape = [2]
        [limits]
        memory = "{memory}"
        [queue]
        max_bytes = "16MiB"
        [batch]
        max_wait = "20ms"
        [model]
        type = "linear"
        path = "model.npz"
        [sink.scores]
        {sink}
        [dead_letter]
        path = "dead.jsonl"
        [http]
        listen = "127.0.0.1:0"
        """


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "model.npz", weights=np.ones(2, np.float32), bias=0.0)
    return tmp_path


def rss(daemon: Daemon, *, is_peak: bool = False) -> int:
    """Return the bytes that the process takes, or the most that it ever took."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.split("VmHWM:" if is_peak else "VmRSS:")[1].split()[0]) * 1024


def test_a_stalled_sink_blocks_the_sender_and_everything_arrives_once_it_goes_on(folder: Path) -> None:
    """A sender at full speed into a stdout that nobody reads."""
    number, width = 400_000, 200
    sent = threading.Event()

    def send(address: tuple[str, int]) -> None:
        with socket.create_connection(address, timeout=100) as connection:
            for start in range(0, number, 1000):
                lines = [
                    b'{"id": %d, "x": [1, 2], "pad": "%s"}\n' % (i, b"p" * width) for i in range(start, start + 1000)
                ]
                connection.sendall(b"".join(lines))
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        sent.set()

    with running(folder, config("type = 'stdout'"), stdout=subprocess.PIPE) as daemon:
        bare = rss_when_listening(daemon)
        with ThreadPoolExecutor(2) as threads:
            sending = threads.submit(send, daemon.address("tcp"))
            daemon.until(lambda: daemon.status()["queue"]["bytes"] > 14 * MIB, "the queue is full")
            daemon.until(lambda: daemon.status()["not_ready"] != [], "the stall makes it unready")
            received = daemon.status()["records"]["received"]
            assert received < number
            assert not sent.is_set()
            assert daemon.get("/livez")[0] == 200
            assert daemon.get("/readyz")[0] == 503
            assert daemon.status()["records"]["received"] == received

            assert daemon.process.stdout is not None
            out = threads.submit(daemon.process.stdout.read)
            sending.result(100)
            daemon.until(lambda: daemon.status()["records"]["scored"] == number, "all is scored")
            assert daemon.get("/readyz")[0] == 200
            assert rss(daemon, is_peak=True) - bare < 64 * MIB
            assert daemon.stop() == 0
            ids = [json.loads(line)["id"] for line in out.result(100).splitlines()]
    assert ids == list(range(number))


def rss_when_listening(daemon: Daemon) -> int:
    """Return what the bare process takes, its scoring path warmed by a first record."""
    daemon.send("tcp", b"not json\n")
    daemon.until(lambda: daemon.status()["records"]["dead_lettered"] == 1, "the first record is through")
    return rss(daemon)


def test_a_thousand_clients_that_hold_back_half_of_a_large_record(folder: Path) -> None:
    """Their halves alone are twice the memory limit; a stalled sink besides; in the end every record is scored."""
    clients, half = 1000, MIB // 2 - 100
    first = [b'{"id": %d, "x": [1, 2], "pad": "%s' % (i, b"a" * half) for i in range(clients)]
    second = b"b" * half + b'"}\n'
    gate = threading.Event()

    def talk(number: int, address: tuple[str, int]) -> None:
        with socket.create_connection(address, timeout=100) as connection:
            connection.sendall(first[number])
            gate.wait(100)
            connection.sendall(second)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""

    threading.stack_size(256 * 1024)
    try:
        with running(folder, config("type = 'stdout'", "256MiB"), stdout=subprocess.PIPE) as daemon:
            bare = rss_when_listening(daemon)
            address = daemon.address("tcp")
            with ThreadPoolExecutor(clients + 1) as threads:
                talks = [threads.submit(talk, number, address) for number in range(clients)]
                daemon.until(lambda: daemon.status()["memory"]["bytes"] > 32 * MIB, "halves have come in")
                assert daemon.get("/livez")[0] == 200
                gate.set()
                assert daemon.process.stdout is not None
                out = threads.submit(daemon.process.stdout.read)
                for each in talks:
                    each.result(100)
                daemon.until(lambda: daemon.status()["records"]["scored"] == clients, "all is scored")
                assert rss(daemon, is_peak=True) - bare < 256 * MIB
                assert daemon.stop() == 0
                ids = [json.loads(line)["id"] for line in out.result(100).splitlines()]
    finally:
        threading.stack_size(0)
    assert sorted(ids) == list(range(clients))


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_sigterm_while_fifty_connections_send(folder: Path, executor: str) -> None:
    """Exit 0; every record read is scored or dead-lettered, and the report says so."""
    stop = threading.Event()

    def send(number: int, address: tuple[str, int]) -> None:
        try:
            with socket.create_connection(address, timeout=20) as connection:
                for at in range(1_000_000):
                    if stop.is_set():
                        return
                    broken = at % 100 == 99
                    line = b"broken\n" if broken else b'{"id": "%d-%d", "x": [1, %d]}\n' % (number, at, at)
                    connection.sendall(line)
        except OSError:
            pass

    sink = "type = 'file'\npath = 'scores.jsonl'"
    with running(folder, config(sink), "--set", f"workers.executor={executor}") as daemon:
        address = daemon.address("tcp")
        with ThreadPoolExecutor(50) as threads:
            for number in range(50):
                threads.submit(send, number, address)
            try:
                daemon.until(lambda: daemon.status()["records"]["scored"] > 5000, "scores come out")
                code = daemon.stop(signal.SIGTERM)
            finally:
                stop.set()
        report = daemon.report
        assert code == 0, daemon.rest()

    records = report["records"]
    assert report["ended"] == "stopped"
    assert records["unacked"] == 0
    assert is_balanced(records)
    scores, dead = scores_in(folder / "scores.jsonl"), scores_in(folder / "dead.jsonl")
    assert len(scores) == records["scored"]
    assert len(dead) == records["dead_lettered"] > 0
    assert max(Counter(line["id"] for line in scores).values()) == 1
    by_client: dict[str, list[int]] = {}
    for line in scores:
        client, at = line["id"].split("-")
        by_client.setdefault(client, []).append(int(at))
    for numbers in by_client.values():
        assert numbers == [at for at in range(numbers[-1] + 1) if at % 100 != 99]
