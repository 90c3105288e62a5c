"""Pipelines that are known to be limited by one stage: their status says which, and what to turn."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from tests.e2e.running import PATIENCE_SECONDS, Daemon, running

pytestmark = pytest.mark.slow

CONFIG = """
name = "seeded"
[source.feed]
type = "stdin"
[record]
id = "id"
features = "features"
shape = [{features}]
[batch]
max_records = {max_records}
[model]
type = "linear"
path = "model.npz"
[workers]
count = {workers}
[sink.scores]
type = "none"
[http]
listen = "127.0.0.1:0"
"""
SLOW_MODEL = """
import time
import numpy as np

def score(x):
    time.sleep(0.05)
    return np.zeros(len(x))
"""


def config_of(folder: Path, *, features: int = 10, max_records: int = 512, workers: int = 1) -> str:
    """Return a config, with its model and its input beside it: 2,000 records in feed.jsonl."""
    np.savez(folder / "model.npz", weights=np.ones(features), bias=np.float64(0))
    rows = [[(place * step + step) % 10 for place in range(features)] for step in range(50)]
    lines = (json.dumps({"id": number, "features": rows[number % 50]}) + "\n" for number in range(2000))
    (folder / "feed.jsonl").write_text("".join(lines))
    return CONFIG.format(features=features, max_records=max_records, workers=workers)


@contextmanager
def endless(folder: Path) -> Iterator[IO[bytes]]:
    """Give feed.jsonl, over and over, as fast as it is read."""
    feed = subprocess.Popen(["sh", "-c", "while cat feed.jsonl; do :; done"], cwd=folder, stdout=subprocess.PIPE)
    assert feed.stdout is not None
    try:
        yield feed.stdout
    finally:
        feed.kill()
        feed.stdout.close()
        feed.wait()


def verdict_of(daemon: Daemon, stage: str, says: str = "") -> dict[str, Any]:
    """Return the verdict once it names this stage and says this, over some seconds of work."""
    found: dict[str, Any] = {}

    def is_right() -> bool:
        status = daemon.status()
        found.update(status["verdict"] or {})
        return status["uptime_seconds"] > 4 and found.get("stage") == stage and says in found["sentence"]

    try:
        daemon.until(is_right, f"the verdict is {stage}")
    except AssertionError as error:
        raise AssertionError(f"the last verdict was {found}") from error
    return found


def judged(folder: Path, config: str, stage: str, says: str = "") -> dict[str, Any]:
    """Return the verdict on a pipeline that has more input than it can take."""
    with endless(folder) as feed, running(folder, config, stdin=feed) as daemon:
        return verdict_of(daemon, stage, says)


def knob_of(verdict: dict[str, Any]) -> tuple[str, str, Any, Any]:
    knob = verdict["knob"]
    return knob["key"], knob["direction"], knob["now"], knob["to"]


def test_a_slow_model(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_MODEL)
    config = config_of(tmp_path).replace('type = "linear"\npath = "model.npz"', 'type = "python"\npath = "slow:score"')
    verdict = judged(tmp_path, config, "score")
    assert knob_of(verdict) == ("workers.count", "raise", 1, 2)
    assert "waits more than it computes" in verdict["sentence"]


def test_tiny_batches(tmp_path: Path) -> None:
    verdict = judged(tmp_path, config_of(tmp_path, max_records=4), "batch")
    assert knob_of(verdict) == ("batch.max_records", "raise", 4, 512)
    assert "4 records a batch" in verdict["evidence"][0]


def test_decoding_that_takes_turns_at_pythons_lock(tmp_path: Path) -> None:
    config = config_of(tmp_path, features=200, workers=2)
    # A file: a pipe is read in small blocks, which costs as much as to decode them. Two million records in little room.
    (tmp_path / "feed.jsonl.gz").write_bytes(1000 * gzip.compress((tmp_path / "feed.jsonl").read_bytes()))
    config = config.replace('type = "stdin"', 'type = "file"\npath = "feed.jsonl.gz"')
    with running(tmp_path, config) as daemon:
        verdict = verdict_of(daemon, "decode", "more threads will not help")
    assert verdict["knob"] is None or verdict["knob"]["key"] != "workers.count"


def test_a_sink_whose_reader_is_slow(tmp_path: Path) -> None:
    with slow_reader() as address:
        sink = f'type = "tcp"\naddress = "{address}"'
        config = config_of(tmp_path).replace('[sink.scores]\ntype = "none"', f"[sink.scores]\n{sink}")
        verdict = judged(tmp_path, config, "sink", "The sink")
    assert verdict["knob"] is None


def test_scarce_input(tmp_path: Path) -> None:
    source = 'type = "tcp"\nlisten = "127.0.0.1:0"\nformat = "jsonl"'
    config = config_of(tmp_path).replace('type = "stdin"', source)
    line = (tmp_path / "feed.jsonl").read_bytes().splitlines(keepends=True)[0]
    with running(tmp_path, config) as daemon, trickle(daemon.address("feed"), line):
        verdict = verdict_of(daemon, "nothing")
        assert verdict["knob"] is None
        assert "waits for input" in verdict["sentence"]
        daemon.until(lambda: daemon.status()["records"]["scored"] > 0, "some were scored")


@contextmanager
def slow_reader() -> Iterator[str]:
    """Accept one connection and read 64 KiB of it every tenth of a second."""
    done = threading.Event()

    def read(server: socket.socket) -> None:
        server.settimeout(PATIENCE_SECONDS)
        client, _ = server.accept()
        with client:
            client.settimeout(0.1)
            while not done.wait(0.1):
                try:
                    client.recv(1 << 16)
                except TimeoutError:
                    continue

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        reader = threading.Thread(target=read, args=(server,))
        reader.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            done.set()
            reader.join()


@contextmanager
def trickle(address: tuple[str, int], line: bytes) -> Iterator[None]:
    """Send ten records a second."""
    done = threading.Event()

    def send(client: socket.socket) -> None:
        while not done.wait(0.1):
            client.sendall(line)

    with socket.create_connection(address) as client:
        sender = threading.Thread(target=send, args=(client,))
        sender.start()
        try:
            yield
        finally:
            done.set()
            sender.join()
