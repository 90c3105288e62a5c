"""A daemon with an http sink that is killed again and again, and stopped just after it was started: every record
arrives, and whatever comes twice comes as the same bytes under the same batch id, so that a server which knows ids has
each score once."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.running import PATIENCE_SECONDS, Daemon, is_balanced, running, scores_in

KILLS = 9
STOPPED_AFTER = 3
"""Kills, after which the next run is stopped in good order; it sends all that it has read by then."""
RECORDS = 15_000
"""Of each of the two sources."""
OUTCOMES = {"answers": 80, "answers late": 14, "is away": 3, "hangs up": 3}
"""What becomes of a request that was read, and how often of a hundred."""


class Collector:
    """A server that keeps every request it has read to its end, and then answers, says 503, or hangs up."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.requests: list[tuple[str, bytes]] = []
        self._came = threading.Condition()

    def take(self, batch_id: str, body: bytes) -> str:
        with self._came:
            self.requests.append((batch_id, body))
            self._came.notify_all()
            return self.random.choices(list(OUTCOMES), list(OUTCOMES.values()))[0]

    def wait_for(self, more: int, daemon: Daemon) -> bool:
        """Wait for so many more requests; False when the daemon ended before they came."""
        with self._came:
            wanted = len(self.requests) + more
            for _ in range(int(PATIENCE_SECONDS / 0.05)):
                if self._came.wait_for(lambda: len(self.requests) >= wanted, 0.05):
                    return True
                if daemon.process.poll() is not None:
                    return False
        raise AssertionError(f"{more} requests did not come: {daemon.log}")

    @contextmanager
    def serving(self) -> Iterator[int]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                body = self.rfile.read(size)
                if len(body) < size:
                    return  # whoever sent it was killed
                outcome = collector.take(self.headers["Streambatch-Batch-Id"], body)
                time.sleep(0.02 if outcome == "answers late" else 0.002)  # so that many a kill finds one unanswered
                if outcome == "hangs up":
                    self.close_connection = True
                    return
                self.send_response(503 if outcome == "is away" else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that was killed
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def is_dead(number: int) -> bool:
    return number % 11 == 4


def lay_out(folder: Path, port: int) -> str:
    for at, name in enumerate(("left", "right")):
        (folder / name).mkdir()
        for part in range(3):
            numbers = range(at * RECORDS + part * RECORDS // 3, at * RECORDS + (part + 1) * RECORDS // 3)
            features = [[1.0] if is_dead(n) else [n / 7, 1.0] for n in numbers]
            lines = [json.dumps({"id": n, "features": x}) for n, x in zip(numbers, features, strict=True)]
            (folder / name / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    np.savez(folder / "model.npz", weights=np.array([0.5, 2.0], np.float32), bias=0.25)
    return f"""
        name = "stable"
        state_dir = "state"
        [source.left]
        type = "file"
        path = "left/*.jsonl"
        [source.right]
        type = "file"
        path = "right/*.jsonl"
        [record]
        id = "id"
        features = "features"
        shape = [2]
        [batch]
        max_records = 64
        max_wait = "2ms"
        [queue]
        max_records = 1024
        [model]
        type = "linear"
        path = "model.npz"
        [sink.server]
        type = "http"
        url = "http://127.0.0.1:{port}/scores"
        [dead_letter]
        path = "dead.jsonl"
        stop_at = 1.0
        rotate = {{ max_bytes = "32KiB" }}
        [delivery]
        checkpoint_interval = "20ms"
        [http]
        listen = "off"
        """


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_what_comes_twice_comes_under_the_same_id(tmp_path: Path) -> None:
    seed = random.randrange(1_000_000)
    chance, collector = random.Random(seed), Collector(seed)
    kills = 0
    with collector.serving() as port:
        config = lay_out(tmp_path, port)
        for _ in range(KILLS):
            with running(tmp_path, config) as daemon:
                if not collector.wait_for(chance.randrange(1, 16), daemon):
                    break
                time.sleep(chance.random() * 0.03)  # any moment will do
                daemon.stop(signal.SIGKILL)
                kills += 1
            if kills % STOPPED_AFTER:
                continue
            with running(tmp_path, config) as daemon:
                daemon.event("state_changed", state="running")
                time.sleep(chance.random() * 0.01)  # while batches are cut again, or just after
                assert daemon.stop() == 0, (seed, daemon.rest())
                assert is_balanced(daemon.report["records"]), (seed, daemon.report)
        with running(tmp_path, config) as daemon:
            assert daemon.wait() == 0, (seed, daemon.rest())
            assert is_balanced(daemon.report["records"]), (seed, daemon.report)
    assert kills == KILLS, f"seed {seed}: all was sent after {kills} kills"

    bodies: dict[str, set[bytes]] = {}
    for batch_id, body in collector.requests:
        bodies.setdefault(batch_id, set()).add(body)
    assert [each for each, found in bodies.items() if len(found) > 1] == [], f"seed {seed}: ids with other bytes"
    once = [json.loads(line)["id"] for found in bodies.values() for body in found for line in body.splitlines()]
    wanted = Counter(n for n in range(2 * RECORDS) if not is_dead(n))
    assert Counter(once) == wanted, f"seed {seed}: {len(collector.requests)} requests, {len(bodies)} ids"
    letters = [letter for path in sorted(tmp_path.glob("dead*.jsonl*")) for letter in scores_in(path)]
    dead = Counter(json.loads(letter["record"])["id"] for letter in letters)
    assert dead == Counter(n for n in range(2 * RECORDS) if is_dead(n)), f"seed {seed}"
