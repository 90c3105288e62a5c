"""Real streams scored as z-scores, by every way in: each row's score is numpy's, in order, none missing, none twice."""

import gzip
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.running import Daemon, is_balanced, quoted, run_to_end, running, scores_in

pytestmark = pytest.mark.slow
NAMES = ["machine_temperature", "nyc_taxi", "rds_cpu"]
WRITER = Path(__file__).parent / "rotating_writer.py"


class Stream:
    """One file of the data, and what its rows should score."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rows = [line.split(",") for line in path.read_text().splitlines()[1:] if line]
        self.ids = [row[0] for row in rows]
        self.values = np.array([float(row[1]) for row in rows])
        self.mean, self.scale = float(self.values.mean()), float(self.values.std())
        self.expected = (self.values - self.mean) / self.scale

    def config(self, folder: Path, source: str, *, name: str = "zscore") -> str:
        np.savez(folder / "model.npz", weights=np.ones(1), bias=0.0)
        return f"""
            name = "{name}"
            [source.rows]
            {source}
            format = "csv"
            [record]
            id = "timestamp"
            features = ["value"]
            dtype = "float64"
            [[preprocess]]
            type = "standardize"
            mean = [{self.mean!r}]
            scale = [{self.scale!r}]
            [model]
            type = "linear"
            path = "model.npz"
            [sink.scores]
            type = "file"
            path = "out/scores.jsonl"
            [http]
            listen = "127.0.0.1:0"
            """

    def check(self, path: Path, times: int = 1) -> None:
        lines = scores_in(path)
        assert [line["id"] for line in lines] == self.ids * times
        found = np.array([line["score"] for line in lines])
        np.testing.assert_allclose(found, np.tile(self.expected, times), rtol=0, atol=1e-9)


@pytest.fixture(params=NAMES)
def stream(request: pytest.FixtureRequest, data: Path) -> Stream:
    return Stream(data / "nab" / f"{request.param}.csv")


def test_by_file(stream: Stream, tmp_path: Path) -> None:
    shutil.copy(stream.path, tmp_path / "in.csv")
    report = run_to_end(tmp_path, stream.config(tmp_path, 'type = "file"\npath = "in.csv"'))
    stream.check(tmp_path / "out/scores.jsonl")
    assert report["records"]["received"] == report["records"]["scored"] == len(stream.ids)
    assert report["ended"] == "input_ended"
    assert is_balanced(report["records"])


def test_by_glob_of_parts_each_with_its_header(stream: Stream, tmp_path: Path) -> None:
    header, *rows = stream.path.read_bytes().splitlines(keepends=True)
    size = len(rows) // 4 + 1
    for part in range(4):
        (tmp_path / f"part-{part}.csv").write_bytes(header + b"".join(rows[part * size : (part + 1) * size]))
    run_to_end(tmp_path, stream.config(tmp_path, 'type = "file"\npath = "part-*.csv"'))
    stream.check(tmp_path / "out/scores.jsonl")


def test_gzipped_in_several_members_and_without_a_telling_name(stream: Stream, tmp_path: Path) -> None:
    raw = stream.path.read_bytes()
    half = len(raw) // 2
    (tmp_path / "in.dat").write_bytes(gzip.compress(raw[:half]) + gzip.compress(raw[half:]))
    run_to_end(tmp_path, stream.config(tmp_path, 'type = "file"\npath = "in.dat"'))
    stream.check(tmp_path / "out/scores.jsonl")


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_by_any_executor_and_number_of_workers(stream: Stream, tmp_path: Path, executor: str) -> None:
    options = ["--set", f"workers.executor={executor}", "--set", "batch.max_records=37"]
    if executor == "thread":
        options += ["--set", "workers.count=3"]
    config = stream.config(tmp_path, f"type = 'file'\npath = {quoted([str(stream.path)])}")
    run_to_end(tmp_path, config, *options)
    stream.check(tmp_path / "out/scores.jsonl")


def _send(connection: socket.socket, raw: bytes) -> None:
    with connection:
        for start in range(0, len(raw), 10_007):
            connection.sendall(raw[start : start + 10_007])
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def _tcp(daemon: Daemon) -> socket.socket:
    return socket.create_connection(daemon.address("rows"), timeout=20)


def _unix(daemon: Daemon) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    daemon.event("listening", source="rows")
    connection.connect(str(daemon.folder / "in.sock"))
    return connection


@pytest.mark.parametrize(
    ("source", "connect"),
    [("type = 'tcp'\nlisten = '127.0.0.1:0'", _tcp), ("type = 'unix'\npath = 'in.sock'", _unix)],
    ids=["tcp", "unix"],
)
def test_over_a_socket(stream: Stream, tmp_path: Path, source: str, connect: Callable[[Daemon], socket.socket]) -> None:
    with running(tmp_path, stream.config(tmp_path, source)) as daemon:
        _send(connect(daemon), stream.path.read_bytes())
        daemon.until(lambda: daemon.status()["records"]["scored"] == len(stream.ids), "all rows are scored")
        assert daemon.stop() == 0
        stream.check(tmp_path / "out/scores.jsonl")
        assert daemon.report["ended"] == "stopped"
        assert is_balanced(daemon.report["records"])


@pytest.mark.parametrize("way", ["pipe", "redirect"])
def test_over_standard_input(stream: Stream, tmp_path: Path, way: str) -> None:
    config = stream.config(tmp_path, "type = 'stdin'")
    if way == "redirect":
        with stream.path.open("rb") as file:
            run_to_end(tmp_path, config, stdin=file)
    else:
        with running(tmp_path, config, stdin=subprocess.PIPE) as daemon:
            assert daemon.process.stdin is not None
            daemon.process.stdin.write(stream.path.read_bytes())
            daemon.process.stdin.close()
            assert daemon.wait() == 0, daemon.rest()
    stream.check(tmp_path / "out/scores.jsonl")


def test_followed_while_another_process_appends_and_rotates(stream: Stream, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = "type = 'file'\npath = 'in/rows.csv*'\nfollow = true\nrotate_wait = '500ms'"
    with running(tmp_path, stream.config(tmp_path, source)) as daemon:
        daemon.event("state_changed", state="running")
        writer = subprocess.run(
            [sys.executable, str(WRITER), str(stream.path), str(tmp_path / "in/rows.csv"), "5"], check=False, timeout=60
        )
        assert writer.returncode == 0
        daemon.until(lambda: daemon.status()["records"]["scored"] >= len(stream.ids), "all rows are scored")
        assert daemon.stop() == 0
        assert len(os.listdir(tmp_path / "in")) == 5
        stream.check(tmp_path / "out/scores.jsonl")
