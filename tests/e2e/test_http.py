"""curl and a daemon: what is posted is scored, and what is refused is told."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.running import Daemon, is_balanced, running, scores_in
from tests.programs import program


def config(source: str = "", sink: str = 'type = "file"\npath = "scores.jsonl"') -> str:
    return f"""
        name = "posted"
        [source.web]
        type = "http"
        listen = "127.0.0.1:0"
        {source}
        [record]
        id = "id"
        features = "x"
        shape = [2]
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


def curl(daemon: Daemon, body: bytes, *options: str) -> tuple[int, dict[str, Any]]:
    """Post a body; return status and answer."""
    host, port = daemon.address("web")
    url = f"http://{host}:{port}/records"
    command = [program("curl"), "-sS", "-m", "20", "-w", "\n%{http_code}", "--data-binary", "@-", *options, url]
    done = subprocess.run(command, input=body, capture_output=True, check=True, timeout=30)
    answer, _, status = done.stdout.rpartition(b"\n")
    return int(status), json.loads(answer)


def records(count: int) -> bytes:
    return b"".join(b'{"id": %d, "x": [%d, 1]}\n' % (number, number) for number in range(count))


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_what_is_posted_is_scored(folder: Path, executor: str) -> None:
    body = records(5000)
    with running(folder, config(), "--set", f"workers.executor={executor}") as daemon:
        assert curl(daemon, body) == (200, {"received": 5000})
        assert curl(daemon, body, "-H", "Transfer-Encoding: chunked") == (200, {"received": 5000})
        assert curl(daemon, gzip.compress(body), "-H", "Content-Encoding: gzip") == (200, {"received": 5000})
        assert daemon.stop() == 0
        counts = daemon.report["records"]
    assert counts["scored"] == counts["received"] == 15_000
    scores = scores_in(folder / "scores.jsonl")
    assert [line["id"] for line in scores] == list(range(5000)) * 3
    assert all(line["score"] == line["id"] + 1 for line in scores)


def test_a_broken_line_is_one_dead_letter(folder: Path) -> None:
    with running(folder, config()) as daemon:
        assert curl(daemon, records(3) + b"broken\n" + records(3)) == (200, {"received": 7})
        assert daemon.stop() == 0
        assert daemon.report["records"]["dead_lettered"] == 1
    (dead,) = scores_in(folder / "dead.jsonl")
    assert (dead["record"], dead["reason"], dead["partition"][-2:]) == ("broken", "invalid_json", "-1")


def test_too_large_a_body_is_refused_and_counted(folder: Path) -> None:
    with running(folder, config('max_body_bytes = "1KiB"')) as daemon:
        status, answer = curl(daemon, records(1000))
        assert (status, answer["received"]) == (413, 0)
        status, answer = curl(daemon, records(1000), "-H", "Transfer-Encoding: chunked")
        assert status == 413
        assert daemon.stop() == 0
        counts = daemon.report["records"]
    assert counts["refused"] == 2
    assert counts["received"] == counts["scored"] == answer["received"] < 1000


@pytest.mark.slow
def test_while_the_queue_is_full_clients_are_asked_to_come_again(folder: Path) -> None:
    # Small batches: 1024 of them may be under way before any stays in the queue.
    limits = ("--set", "queue.max_records=1000", "--set", "batch.max_records=20")
    with running(folder, config(sink='type = "stdout"'), *limits, stdout=subprocess.PIPE) as daemon:
        assert daemon.process.stdout is not None
        host, port = daemon.address("web")
        command = [program("curl"), "-sS", "--data-binary", "@-", f"http://{host}:{port}/records"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as filling:
            assert filling.stdin is not None
            filling.stdin.write(records(50_000))
            filling.stdin.close()
            daemon.until(lambda: daemon.status()["queue"]["records"] == 1000, "the queue is full")
            daemon.until(lambda: daemon.status()["not_ready"] != [], "the stall makes it unready")
            status, answer = curl(daemon, records(10))
            assert (status, answer) == (429, {"received": 0, "error": "the queue is full"})
            read = 0
            while read < 50_000:
                read += daemon.process.stdout.readline().count(b"\n")
            assert filling.stdout is not None
            assert json.loads(filling.stdout.read()) == {"received": 50_000}
        assert curl(daemon, b"")[0] == 200
        assert daemon.stop() == 0
        counts = daemon.report["records"]
    assert counts["refused"] == 1
    assert counts["scored"] == 50_000
    assert is_balanced(counts)
