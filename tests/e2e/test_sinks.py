"""Scores that leave over a socket, from a real daemon."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.connectors.http.test_sink import served
from tests.e2e.running import run_to_end

COUNT = 20_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "model.npz", weights=np.ones(2, np.float32), bias=0.0)
    lines = [b'{"id": %d, "x": [%d, 1]}\n' % (number, number) for number in range(COUNT)]
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
    return tmp_path


def config(sink: str) -> str:
    return f"""
        name = "sent"
        [source.file]
        type = "file"
        path = "in.jsonl"
        [record]
        id = "id"
        features = "x"
        shape = [2]
        [model]
        type = "linear"
        path = "model.npz"
        [sink.scores]
        {sink}
        [http]
        listen = "off"
        """


def is_all(sent: bytes) -> bool:
    scores = [json.loads(line) for line in sent.splitlines()]
    return scores == [{"id": number, "score": number + 1.0} for number in range(COUNT)]


@pytest.mark.slow
def test_all_scores_are_posted(folder: Path) -> None:
    with served() as server:
        report = run_to_end(folder, config(f'type = "http"\nurl = "{server.url}"'))
        assert report["records"]["scored"] == COUNT
        assert is_all(b"".join(body for _, _, body in server.posts))
        assert len({head["streambatch-batch-id"] for _, head, _ in server.posts}) == len(server.posts)


def test_a_server_that_refuses_ends_the_run(folder: Path) -> None:
    with served() as server:
        server.statuses = [405] * 1000
        report = run_to_end(folder, config(f'type = "http"\nurl = "{server.url}"'), code=1)
        assert "answered 405: because" in report["error"]
        assert report["records"]["scored"] == 0
        assert report["records"]["unacked"] == report["records"]["received"]


def test_all_scores_are_sent(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:

        def keep() -> bytes:
            client, _ = listener.accept()
            with client, client.makefile("rb") as stream:
                return stream.read()

        kept = threads.submit(keep)
        run_to_end(folder, config(f'type = "tcp"\naddress = "127.0.0.1:{listener.getsockname()[1]}"'))
        assert is_all(kept.result(20))
