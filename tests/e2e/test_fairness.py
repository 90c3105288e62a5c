"""Several sources in one pipeline: a loud one doesn't make the records of a quiet one wait."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.running import is_balanced, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
MAX_WAIT = 0.25
BATCH_SECONDS = 0.02
QUEUE_RECORDS = 200_000
ASKED = 30

CONFIG = f"""
    name = "fair"
    [source.loud]
    type = "tcp"
    listen = "127.0.0.1:0"
    [source.quiet]
    type = "tcp"
    listen = "127.0.0.1:0"
    reply = true
    [source.shy]
    type = "tcp"
    listen = "127.0.0.1:0"
    reply = true
    [record]
    id = "id"
    features = "x"
    shape = [2]
    [batch]
    max_wait = "{MAX_WAIT}s"
    max_records = 1000
    [model]
    type = "python"
    path = "slow:Model"
    [sink.scores]
    type = "none"
    [dead_letter]
    path = "dead.jsonl"
    [http]
    listen = "127.0.0.1:0"
    """
MODEL = f"""
import time

class Model:
    def score(self, x):
        since = time.monotonic()
        time.sleep({BATCH_SECONDS})
        with open("seconds.txt", "a") as file:
            print(time.monotonic() - since, file=file)
        return x[:, 0]
"""


def test_two_slow_sources_beside_one_at_full_speed(tmp_path: Path) -> None:
    """The model takes 50,000 records/s; the loud source sends as fast as it may, and what it sent waits for seconds.

    Every record of the others is scored within twice `max_wait` and two batch times.
    """
    (tmp_path / "slow.py").write_text(MODEL)
    np.savez(tmp_path / "model.npz", weights=np.ones(2, np.float32), bias=0.0)
    stop = threading.Event()

    def shout(address: tuple[str, int]) -> None:
        block = b"".join(b'{"id": %d, "x": [1, 2]}\n' % number for number in range(1000))
        try:
            with socket.create_connection(address, timeout=100) as connection:
                while not stop.is_set():
                    connection.sendall(block)
        except OSError:
            pass

    def ask(address: tuple[str, int]) -> list[float]:
        """Return how long each record took from its sending to its score."""
        took = []
        with socket.create_connection(address, timeout=100) as connection, connection.makefile("rb") as answers:
            for number in range(ASKED):
                since = time.monotonic()
                connection.sendall(b'{"id": %d, "x": [%d, 2]}\n' % (number, number))
                assert json.loads(answers.readline()) == {"id": number, "score": float(number)}
                took.append(time.monotonic() - since)
                time.sleep(0.01)  # it is quiet: never two of its records at once
        return took

    with running(tmp_path, CONFIG, "--set", f"queue.max_records={QUEUE_RECORDS}") as daemon:
        loud, quiet, shy = (daemon.address(name) for name in ("loud", "quiet", "shy"))
        with ThreadPoolExecutor(3) as threads:
            threads.submit(shout, loud)
            try:
                daemon.until(lambda: daemon.status()["queue"]["records"] > 0.8 * QUEUE_RECORDS, "the queue is full")
                asked = [threads.submit(ask, address) for address in (quiet, shy)]
                took = [seconds for each in asked for seconds in each.result(100)]
                own = daemon.status()["latency_seconds"]["p95"]
                code = daemon.stop()
            finally:
                stop.set()
        assert code in (0, 3), daemon.rest()
        assert is_balanced(daemon.report["records"])
    batch_seconds = max(map(float, (tmp_path / "seconds.txt").read_text().split()))
    bound = 2 * MAX_WAIT + 2 * batch_seconds
    assert own > 2 * bound, "the loud source doesn't keep the pipeline busy"
    assert len(took) == 2 * ASKED
    assert max(took) < bound, sorted(took)
