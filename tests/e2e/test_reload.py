"""A daemon that is told to read its config again, while records come in."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.running import PATIENCE_SECONDS, Daemon, is_balanced, running, scores_in

pytestmark = pytest.mark.slow
CONFIG = """
name = "rides"
[source.rides_in]
type = "tcp"
listen = "127.0.0.1:0"
[record]
id = "id"
features = "x"
shape = [2]
dtype = "float64"
[batch]
max_records = 64
max_wait = "1ms"
[model]
type = "linear"
path = "model.npz"
[sink.scores]
type = "file"
path = "out.jsonl"
[http]
listen = "127.0.0.1:0"
lifecycle = true
"""
BROKEN = CONFIG.replace("max_records = 64", 'max_records = "many"')
FORBIDDEN = CONFIG.replace('path = "out.jsonl"', 'path = "other.jsonl"').replace('name = "rides"', 'name = "taxis"')
NO_MODEL = CONFIG.replace("model.npz", "nowhere.npz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path, 0.0)
    return tmp_path


def save_model(folder: Path, bias: float, weights: Any = (0.0, 0.0), name: str = "model.npz") -> None:
    partial = folder / "model.new.npz"
    np.savez(partial, weights=np.asarray(weights), bias=bias)
    partial.rename(folder / name)


class Client:
    """Sends records on one connection until told to stop; `sent` is how many."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sent = 0
        self._address = address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        with suppress(OSError), socket.create_connection(self._address) as client:  # a daemon may go first
            while not self._stop.is_set():
                ids = range(self.sent, self.sent + 50)
                client.sendall(b"".join(b'{"id": %d, "x": [1, 2]}\n' % number for number in ids))
                self.sent += 50
            client.shutdown(socket.SHUT_WR)
            client.recv(1)

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more, and wait until what was sent is read."""
        self._stop.set()
        self._thread.join()


@contextmanager
def under_load(folder: Path, config: str = CONFIG) -> Iterator[tuple[Daemon, Client]]:
    with running(folder, config) as daemon, Client(daemon.address("rides_in")) as client:
        daemon.event("admin_listening")
        yield daemon, client


def hang_up(daemon: Daemon, config: str, name: str) -> dict[str, Any]:
    """Have the daemon reload a config; return the line that tells how that ended, which has this name."""
    (daemon.folder / "pipeline.toml").write_text(config)
    daemon.process.send_signal(signal.SIGHUP)
    line = daemon.next_event("reloaded", "reload_failed")
    assert line["event"] == name, line
    return line


def value(daemon: Daemon, metric: str) -> float:
    page = daemon.get("/metrics")[1].decode()
    return float(next(line for line in page.splitlines() if line.startswith(f"streambatch_{metric}")).split()[-1])


def manifest(folder: Path) -> dict[str, Any]:
    with sqlite3.connect(folder / ".streambatch/rides/state.sqlite3") as state:
        (detail,) = state.execute("SELECT detail FROM progress ORDER BY number DESC LIMIT 1").fetchone()
    found: dict[str, Any] = json.loads(detail)
    return found


def test_twenty_reloads_under_load_lose_no_record_and_keep_the_order(folder: Path) -> None:
    with under_load(folder) as (daemon, client):
        for turn in range(1, 21):
            kind = turn % 4
            if kind == 0:
                assert "max_records" in hang_up(daemon, BROKEN, "reload_failed")["error"]
            elif kind == 1:
                error = hang_up(daemon, FORBIDDEN, "reload_failed")["error"]
                assert "name: found 'taxis'; allowed: 'rides'" in error
                assert "sink.scores.path" in error
                assert "other.jsonl" in error
            else:
                save_model(folder, float(turn))
                new = CONFIG.replace("max_records = 64", f"max_records = {turn * 10}")
                assert "batch.max_records" in hang_up(daemon, new, "reloaded")["changed"]
        digest = daemon.status()["config_digest"]
        assert value(daemon, 'config_reloads_total{outcome="ok"}') == 10
        assert value(daemon, 'config_reloads_total{outcome="failed"}') == 10
        assert value(daemon, 'model_reloads_total{outcome="ok",pipeline="rides"}') == 10
        assert value(daemon, f'config_info{{digest="{digest}"}}') == 1
        assert json.loads(daemon.get("/config")[1])["batch"]["max_records"] == 190
        client.stop()
        assert daemon.stop() == 0
        report = daemon.report
    scores = scores_in(folder / "out.jsonl")
    assert [line["id"] for line in scores] == list(range(client.sent))
    assert report["records"]["scored"] == report["records"]["received"] == client.sent
    assert is_balanced(report["records"])
    biases = [line["score"] for line in scores]
    assert biases == sorted(biases)
    assert set(biases) <= {0.0, *(float(turn) for turn in range(1, 21) if turn % 4 > 1)}
    assert len(set(biases)) > 1

    changes = manifest(folder)["changes"]
    numbers = [change["batch"] for change in changes]
    assert numbers == sorted(numbers)
    assert changes[-1]["config"]["batch"]["max_records"] == 190
    digests = [change["model"]["sha256"] for change in changes]
    assert all(a != b for a, b in pairwise(digests))


def test_a_model_that_does_not_fit_changes_nothing(folder: Path) -> None:
    with under_load(folder) as (daemon, _):
        assert "nowhere.npz" in hang_up(daemon, NO_MODEL, "reload_failed")["error"]
        save_model(folder, 1.0, (1.0, 2.0, 3.0))
        assert "(2,)" in hang_up(daemon, CONFIG, "reload_failed")["error"]
        save_model(folder, 1.0, np.ones((2, 3)))
        assert "as the model that runs gives" in hang_up(daemon, CONFIG, "reload_failed")["error"]
        assert value(daemon, 'model_reloads_total{outcome="failed",pipeline="rides"}') == 3
        before = daemon.status()["model"]["digest"]
        save_model(folder, 0.0)
        line = hang_up(daemon, CONFIG, "reloaded")
        assert (line["changed"], line["model_replaced"]) == ([], False)
        assert daemon.status()["model"]["digest"] == before
        assert daemon.get("/readyz")[0] == 200
    assert {line["score"] for line in scores_in(folder / "out.jsonl")} == {0.0}


def post(daemon: Daemon) -> tuple[int, dict[str, Any]]:
    status, answer = daemon.post("/-/reload")
    return status, json.loads(answer)


def test_over_http(folder: Path) -> None:
    with running(folder, CONFIG) as daemon:
        daemon.event("state_changed", state="running")
        (folder / "pipeline.toml").write_text(
            CONFIG.replace('max_wait = "1ms"', 'max_wait = "2ms"') + "[workers]\ncount = 3\n"
        )
        status, answer = post(daemon)
        assert status == 200
        assert {(change["key"], change["from"], change["to"]) for change in answer["changes"]} == {
            ("batch.max_wait", "0.001", "0.002"),
            ("workers.count", "1", "3"),
        }
        assert not answer["model"]["replaced"]
        (folder / "pipeline.toml").write_text(FORBIDDEN)
        status, answer = post(daemon)
        assert status == 400
        assert len(answer["problems"]) == 3  # and of state_dir, which follows from the name
        assert daemon.get("/-/reload")[0] == 405
        assert daemon.status()["settings"]["workers"]["count"] == 3
        assert daemon.stop() == 0


def test_where_a_folder_is_not_named_in_utf_8(folder: Path) -> None:
    folder = folder / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    save_model(folder, 0.0)
    with running(folder, CONFIG) as daemon:
        daemon.event("state_changed", state="running")
        status, body = daemon.get("/config")
        assert (status, json.loads(body)["sink"]["scores"]["path"]) == (200, rf"{folder.parent}/caf\xe9/out.jsonl")
        (folder / "pipeline.toml").write_text(FORBIDDEN)
        status, body = daemon.post("/-/reload")
        assert status == 400
        assert json.loads(body)["problems"][-1].startswith(
            rf"{folder.parent}/caf\xe9/pipeline.toml: sink.scores.path: found '{folder.parent}/caf\xe9/other.jsonl'; "
        )


def test_without_lifecycle_there_is_no_such_page(folder: Path) -> None:
    with running(folder, CONFIG.replace("lifecycle = true", "")) as daemon:
        assert post(daemon)[0] in (404, 405)


def test_one_reload_at_a_time_and_a_stop_does_not_wait_for_it(folder: Path) -> None:
    (folder / "slow.py").write_text(
        "import pathlib, threading\npathlib.Path('loading').touch()\nthreading.Event().wait()\n"
    )
    slow = CONFIG.replace('type = "linear"\npath = "model.npz"', 'type = "python"\npath = "slow:score"')
    with under_load(folder) as (daemon, _):
        daemon.event("state_changed", state="running")
        (folder / "pipeline.toml").write_text(slow)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.until((folder / "loading").exists, "the model is loading")
        assert post(daemon)[0] == 409
        assert daemon.get("/livez")[0] == 200
        assert daemon.stop() == 0


def test_the_end_of_its_terminal_is_a_stop_and_no_reload(folder: Path) -> None:
    (folder / "pipeline.toml").write_text(CONFIG)
    master, slave = os.openpty()
    command = [sys.executable, "-m", "streambatch", "run", "pipeline.toml", "--report", "report.json"]
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=slave)
    try:
        os.close(slave)
        said = b""
        while b"listening" not in said or b"running" not in said:
            said += os.read(master, 65536)
        os.close(master)
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE_SECONDS) == 0
        assert json.loads((folder / "report.json").read_bytes())["ended"] == "stopped"
    finally:
        process.kill()
        process.wait()
