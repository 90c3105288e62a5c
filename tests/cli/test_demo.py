"""The demo, as a process: live progress, a summary that adds up, and nothing left behind."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from streambatch.cli.demo import BURST, due, run_demo

pytestmark = pytest.mark.slow


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "streambatch", "demo", *options]


def environ(folder: Path) -> dict[str, str]:
    # What configures other pipelines must not reach the demo's.
    return {**os.environ, "TMPDIR": str(folder), "STREAMBATCH_BATCH__MAX_RECORDS": "none"}


def test_it_ends_with_a_summary_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        command("--seconds", "3"), env=environ(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"received +([\d,]+) records of ([\d,]+) fed: ([\d,]+) scored, (\d+) dead", done.stdout)
    assert counts is not None, done.stdout
    received, fed, scored, dead = (int(count.replace(",", "")) for count in counts.groups())
    assert received == fed == scored + dead
    assert dead == fed // 5000
    assert re.search(r"^latency +p50 [\d.]+ m?s, p99 [\d.]+ m?s", done.stdout, re.M)
    assert re.search(r"^batches +.*\d by size", done.stdout, re.M)
    assert re.search(r"metrics are at http://127\.0\.0\.1:\d+/metrics", done.stdout)
    letter = re.search(r"^dead letter (.*)$", done.stdout, re.M)
    assert letter is not None
    assert json.loads(letter[1])["reason"] == "invalid_json"
    assert re.search(r"^[\d,]+ in  [\d,]+ scored  \d+ dead  [\d,]+/s  p99 ", done.stderr, re.M)
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_gets_a_bar_and_the_folder_is_kept_if_asked(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    with subprocess.Popen(
        command("--seconds", "1", "--keep"), env=environ(tmp_path), stdout=subprocess.PIPE, stderr=follower
    ) as process:
        os.close(follower)
        shown = b""
        while block := _read(leader):
            shown += block
        os.close(leader)
        assert process.stdout is not None
        assert b"kept" in process.stdout.read()
    assert process.returncode == 0, shown
    assert b"scored" in shown
    assert b"queue" in shown
    (folder,) = tmp_path.iterdir()
    assert {"pipeline.toml", "model.npz", "feed.jsonl", "scores.jsonl", "report.json"} <= set(os.listdir(folder))


def test_ctrl_c_ends_it_early_with_the_summary(tmp_path: Path) -> None:
    with subprocess.Popen(
        command("--seconds", "3600"), env=environ(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "metrics are at" in line:
                break
        time.sleep(0.3)  # some records, no matter how many
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 0, said
    assert "received" in rest
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_that_will_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("streambatch.cli.demo.write_model", lambda path: path.write_text("no model"))
    assert run_demo(1, keep=False) == 1
    assert "error: the pipeline did not start; its log ends with\nerror: model linear: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("streambatch.cli.demo.PORT", port)
        assert run_demo(1, keep=False) == 0
    shown = re.search(r"metrics are at http://127\.0\.0\.1:(\d+)/metrics", capsys.readouterr().out)
    assert shown is not None
    assert int(shown[1]) not in (0, port)


def test_the_feed_swings_and_has_one_burst() -> None:
    held = [due(at / 100, 10) for at in range(1000)]
    rates = [after - before for before, after in pairwise(held)]
    assert held[0] == 0
    assert min(rates) >= 0
    assert sum(rate >= BURST for rate in rates) == 1


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the other end is closed
        return b""
