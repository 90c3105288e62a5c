"""Answers on the connection that the records came on: one line for each, in order, whatever becomes of it."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.running import is_balanced, running, scores_in
from tests.programs import program

MIB = 1 << 20


def config(source: str = "", *, sink: str = 'path = "scores.jsonl"', extra: str = "") -> str:
    return f"""
        name = "replies"
        [source.asked]
        type = "tcp"
        listen = "127.0.0.1:0"
        reply = true
        {source}
        [record]
        id = "id"
        features = "x"
        shape = [2]
        carry = ["n"]
        [batch]
        max_wait = "20ms"
        [model]
        type = "linear"
        path = "model.npz"
        [sink.scores]
        type = "file"
        {sink}
        [dead_letter]
        path = "dead.jsonl"
        [http]
        listen = "127.0.0.1:0"
        {extra}
        """


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "model.npz", weights=np.ones(2, np.float32), bias=0.0)
    return tmp_path


@contextmanager
def connected(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=20) as connection:
        yield connection


def ask(address: tuple[str, int], sent: bytes) -> list[dict[str, Any]]:
    """Send all, end the sending side, and return the lines that come until the server closes."""
    with connected(address) as connection, connection.makefile("rb") as answers:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return [json.loads(line) for line in answers]


def record(number: int) -> bytes:
    return b'{"id": %d, "x": [%d, 1], "n": "%d"}\n' % (number, number, number)


def score(number: int) -> dict[str, Any]:
    return {"id": number, "score": number + 1.0, "n": str(number)}


@pytest.mark.parametrize("sink", ['path = "scores.jsonl"', 'path = "scores.csv"\nformat = "csv"'])
def test_every_record_has_its_line_in_its_place(folder: Path, sink: str) -> None:
    sent = (
        record(0) + b"nonsense\n" + record(2) + b'{"id": "b", "x": [1]}\n\n' + record(4) + b'{"id": 5, "x": [NaN, 1]}'
    )
    with running(folder, config(sink=sink)) as daemon:
        answers = ask(daemon.address("asked"), sent)
        assert daemon.stop() == 0
    errors: list[Any] = [answer.get("error") for answer in answers]
    assert [answer["id"] for answer in answers] == [0, None, 2, "b", 4, None]
    assert [answers[at] for at in (0, 2, 4)] == [score(0), score(2), score(4)]
    assert errors[1]["stage"] == "decode"
    assert errors[1]["reason"] == "invalid_json"
    assert errors[3]["stage"] == "validate"
    assert set(errors[3]) == {"stage", "reason", "message"}
    assert "message" in errors[5]
    assert len(scores_in(folder / "dead.jsonl")) == 3


def test_a_record_that_a_step_leaves_out_is_told_so(folder: Path) -> None:
    (folder / "keep.py").write_text("def even(x):\n    return x, x[:, 0] % 2 == 0\n")
    extra = '[[preprocess]]\ntype = "python"\npath = "keep:even"'
    with running(folder, config(extra=extra)) as daemon:
        answers = ask(daemon.address("asked"), b"".join(map(record, range(6))))
        assert daemon.stop() == 0
        assert daemon.report["records"]["dropped"] == 3
    assert answers[::2] == [score(0), score(2), score(4)]
    assert [answer["id"] for answer in answers] == list(range(6))
    assert answers[1]["error"] == {
        "stage": "preprocess",
        "reason": "filtered",
        "message": "a preprocess step left the record out",
    }


def test_many_clients_each_get_their_own(folder: Path) -> None:
    quiet = '[source.quiet]\ntype = "tcp"\nlisten = "127.0.0.1:0"'
    count = 3000

    def numbers(client: int) -> range:
        return range(client * count, (client + 1) * count)

    with running(folder, config(extra=quiet), "--set", "batch.max_records=100") as daemon:
        address, other = daemon.address("asked"), daemon.address("quiet")
        with ThreadPoolExecutor(11) as threads:
            asked = [threads.submit(ask, address, b"".join(map(record, numbers(at)))) for at in range(10)]
            silent = threads.submit(ask, other, b"".join(map(record, numbers(10))))
            for client, future in enumerate(asked):
                assert future.result() == [score(number) for number in numbers(client)]
            assert silent.result() == []
        assert daemon.stop() == 0
        assert daemon.report["records"]["scored"] == 11 * count


@pytest.mark.slow
def test_who_takes_no_answers_holds_back_nobody_else(folder: Path) -> None:
    """Its records stop being read; others are served; once it reads, it gets all there is."""
    count = 200_000
    sent = b"".join(map(record, range(count)))
    with running(folder, config(), "--set", "limits.memory=16MiB", "--set", "queue.max_bytes=4MiB") as daemon:
        with ThreadPoolExecutor(1) as threads, connected(daemon.address("asked")) as slow:
            sending = threads.submit(slow.sendall, sent)
            for number in range(20):
                assert ask(daemon.address("asked"), record(number)) == [score(number)]
            assert daemon.status()["memory"]["bytes"] < 16 * MIB
            received = daemon.status()["records"]["received"]
            with slow.makefile("rb") as answers:
                found = [json.loads(answers.readline()) for _ in range(count)]
            sending.result(20)
        assert received < count
        assert found == [score(number) for number in range(count)]
        daemon.until(lambda: daemon.status()["memory"]["bytes"] == 0, "all is given back")
        assert daemon.stop() == 0


@pytest.mark.slow
def test_who_takes_no_answers_for_too_long_is_cut_off(folder: Path) -> None:
    sent = b"".join(map(record, range(400_000)))
    with running(folder, config('idle_timeout = "300ms"'), "--set", "limits.memory=16MiB") as daemon:
        with connected(daemon.address("asked")) as slow:
            with pytest.raises(ConnectionError):
                slow.sendall(sent)
        metrics = daemon.get("/metrics")[1].decode()
        assert 'connections_rejected_total{pipeline="replies",reason="timeout",source="asked"} 1.0' in metrics
        assert ask(daemon.address("asked"), record(1)) == [score(1)]
        assert daemon.stop() == 0
        assert is_balanced(daemon.report["records"])


@pytest.mark.slow
def test_clients_that_go_away_are_no_trouble(folder: Path) -> None:
    with running(folder, config(), "--set", "batch.max_wait=200ms") as daemon:
        for number in range(20):
            with connected(daemon.address("asked")) as connection:
                connection.sendall(record(number))
        daemon.until(lambda: daemon.status()["records"]["received"] == 20, "all were received")
        assert ask(daemon.address("asked"), record(20)) == [score(20)]
        daemon.until(lambda: daemon.status()["records"]["unacked"] == 0, "all is scored")
        assert daemon.stop() == 0
        assert daemon.report["records"]["scored"] == 21


def test_a_stop_answers_what_was_received_at_once(folder: Path) -> None:
    with running(folder, config(), "--set", "batch.max_wait=1h") as daemon:
        with connected(daemon.address("asked")) as connection, connection.makefile("rb") as answers:
            connection.sendall(record(1) + record(2))
            daemon.until(lambda: daemon.status()["records"]["received"] == 2, "both were received")
            assert daemon.stop() == 0
            assert [json.loads(line) for line in answers] == [score(1), score(2)]
        assert daemon.report["batches"]["shutdown"] == 1


def test_netcat_and_socat_get_answers(folder: Path) -> None:
    unix = '[source.local]\ntype = "unix"\npath = "in.sock"\nreply = true'
    with running(folder, config(extra=unix)) as daemon:
        host, port = daemon.address("asked")
        daemon.event("listening", source="local")
        for command in (
            [program("nc"), "-N", host, str(port)],
            [program("socat"), "-t", "20", "-", f"TCP:{host}:{port}"],
            [program("nc"), "-N", "-U", "in.sock"],
            [program("socat"), "-t", "20", "-", "UNIX-CONNECT:in.sock"],
        ):
            done = subprocess.run(command, input=record(1) + record(2), cwd=folder, capture_output=True, timeout=30)
            assert [json.loads(line) for line in done.stdout.splitlines()] == [score(1), score(2)], done.stderr
        assert daemon.stop() == 0


def test_dropping_and_answering_exclude_each_other(folder: Path) -> None:
    with running(folder, config('when_full = "drop_newest"')) as daemon:
        assert daemon.wait() == 2
        assert "block, with reply = true" in str(daemon.rest())
