"""`streambatch top` on real daemons, and on what is in their place."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from streambatch.cli.admin_url import base_of
from streambatch.cli.top_client import UnreachableError, fetch
from streambatch.cli.top_view import draw, sparkline
from streambatch.core.errors import ConfigError
from streambatch.ops.live_view import LiveView, View
from tests.e2e.running import PATIENCE_SECONDS, running
from tests.ops.loads import status_of

CONFIG = """
name = "watched"
[source.rides_in]
type = "tcp"
listen = "127.0.0.1:0"
[record]
features = "features"
shape = [2]
[model]
type = "linear"
path = "model.npz"
[sink.scores]
type = "none"
[http]
listen = "127.0.0.1:0"
"""
VERDICT = {
    "stage": "batch",
    "sentence": "Batches are too small.",
    "knob": {"key": "batch.max_records", "direction": "raise", "now": 4, "to": 512},
    "evidence": ["4 records a batch"],
}


def top(*arguments: str, token: str | None = None, columns: int = 100) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "COLUMNS": str(columns)}
    environ.pop("STREAMBATCH_TOKEN", None)
    if token is not None:
        environ["STREAMBATCH_TOKEN"] = token
    command = [sys.executable, "-m", "streambatch", "top", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


@contextmanager
def daemon(folder: Path, listen: str = "127.0.0.1:0") -> Iterator[str]:
    """Run an idle daemon; it is the address of its admin port."""
    np.savez(folder / "model.npz", weights=np.ones(2), bias=np.float64(0))
    with running(folder, CONFIG, "--set", f"http.listen={listen}") as one:
        url: str = one.event("admin_listening")["url"]
        one.until(lambda: one.get("/readyz")[0] == 200, "it is ready")
        yield url


@contextmanager
def answering(code: int, body: bytes, seen: list[str | None] | None = None, location: str = "") -> Iterator[str]:
    """Answer whatever is asked; note the Authorization headers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if seen is not None:
                seen.append(self.headers.get("Authorization"))
            self.send_response(code)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            serving.join()


@pytest.mark.slow
def test_once_prints_a_daemon_as_text_or_as_json_and_says_who_is_down(tmp_path: Path) -> None:
    with daemon(tmp_path) as url:
        shown = top(url)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "watched" in shown.stdout
        assert "\x1b" not in shown.stdout
        shown = top("--json", url)
        view = json.loads(shown.stdout)
        assert (view["url"], view["is_up"], view["pipeline"]) == (url, True, "watched")
        shown = top("--once", url, "127.0.0.1:1")
    assert shown.returncode == 1
    assert "connection refused" in shown.stdout
    assert "watched" in shown.stdout


@pytest.mark.slow
def test_on_a_terminal_a_daemon_goes_and_comes_back_and_q_quits(tmp_path: Path) -> None:
    with ExitStack() as first:
        url = first.enter_context(daemon(tmp_path))
        with terminal(url) as (process, master):
            wait_for(master, b"running")
            first.close()
            wait_for(master, b"down since")
            with daemon(tmp_path, listen=url.removeprefix("http://")):
                wait_for(master, b"running")
    assert process.returncode == 0


@contextmanager
def terminal(url: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run it on a terminal of 80 columns and 24 lines, until q is pressed."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    attributes = termios.tcgetattr(slave)
    environ = {**os.environ, "TERM": "xterm"}
    for name in ("COLUMNS", "LINES"):
        environ.pop(name, None)
    command = [sys.executable, "-m", "streambatch", "top", url]
    process = subprocess.Popen(command, env=environ, stdin=slave, stdout=slave, stderr=slave)
    try:
        yield process, master
        os.write(master, b"q")
        wait_for(master, b"\x1b[?1049l")
        process.wait(PATIENCE_SECONDS)
        assert termios.tcgetattr(slave) == attributes
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def wait_for(master: int, wanted: bytes) -> None:
    seen, deadline = b"", time.monotonic() + PATIENCE_SECONDS
    while wanted not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([master], [], [], 0.1)[0]:
            seen += os.read(master, 1 << 16)


def test_a_token_goes_along_and_is_asked_for_where_it_is_missing() -> None:
    seen: list[str | None] = []
    with answering(401, b"{}", seen) as url:
        shown = top("--once", url, "--token", "one")
        assert top("--once", url, token="two").returncode == 1
    assert shown.returncode == 1
    assert "give --token or STREAMBATCH_TOKEN" in " ".join(shown.stdout.split())
    assert seen == ["Bearer one", "Bearer two"]


def test_a_token_is_not_carried_to_another_address() -> None:
    seen: list[str | None] = []
    with answering(200, b"{}", seen) as other, answering(302, b"", location=other) as url:
        with pytest.raises(UnreachableError, match="answered 302"):
            fetch(url, "secret")
    assert seen == []


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"run": 1}', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_status_is_said_to_be_none(body: bytes) -> None:
    with answering(200, body) as url, pytest.raises(UnreachableError):
        fetch(url, None)


@pytest.mark.parametrize("url", ["127.0.0.1:9464", "http://127.0.0.1:9464/", "http://127.0.0.1:9464/status"])
def test_an_address_may_be_short_or_that_of_the_page(url: str) -> None:
    assert base_of(url) == "http://127.0.0.1:9464"


@pytest.mark.parametrize(
    "url", ["", "ftp://x", "bar:99999", "bar:0", "bar:a", "http://", "http://:9464", "http://[::1", "://x"]
)
def test_what_is_no_address_is_said_to_be_none(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        base_of(url)
    assert str(raised.value).startswith(f"URL: found {url!r}; allowed: ")


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_an_address_among_others_that_is_none_is_refused(option: tuple[str, ...]) -> None:
    shown = top(*option, "127.0.0.1:1", "ftp://x")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.startswith("error: URL: found 'ftp://x'; allowed: ")


def view_of(*, is_down: bool = False, **changes: Any) -> View:
    live = LiveView()
    for second in range(30):
        live.update(status_of(seconds=float(second), records=1000 * second, **changes), float(second))
    if is_down:
        live.lost("connection refused", 31.0)
    return {"url": "http://127.0.0.1:9464", **live.view()}


def drawn(views: list[View], width: int, height: int | None = None) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(draw(views, width, height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


BUSY = view_of(
    verdict=VERDICT,
    recent_errors=[
        {"where": "sink scores", "error": "refused", "at": "2026-01-02T03:04:05.000+00:00", "times": 3, "over_at": None}
    ],
    recent_dead_letters=[
        {
            "at": "2026-01-02T03:04:05.000+00:00", "stage": "decode", "reason": "invalid_json", "error": "\x1b[31mbad",
            "source": "rides_in", "partition": "a\nb", "position": 7,
        }
    ],
    runs=[
        {"run": "run-1", "why": "running", "error": None, "records": {"scored": 1, "dead_lettered": 0}},
        {"run": "run-0", "why": "failed", "error": "disk", "records": {"scored": 9, "dead_lettered": 0}},
    ],
)  # fmt: skip


def test_one_daemon_is_shown_in_full() -> None:
    shown = drawn([BUSY], 100)
    for text in (
        "rides", "running", "1,000/s", "29,000 in all", "p99 20 ms", "25%", "0.80 of 2", "80 MiB", "score 50%",
        "Batches are too small.", "batch.max_records: 4 -> 512", "4 records a batch", "sink scores: refused (3 times)",
        "dead in decode: ?[31mbad (a?b:7)", "run run-0 failed, 9 scored", "abcdef", "0123456789ab",
    ):  # fmt: skip
        assert text in shown
    assert "run run-1" not in shown


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
@pytest.mark.parametrize("views", [[BUSY], [view_of(is_down=True)], [BUSY, view_of(is_down=True), view_of()]])
def test_it_fits_into_any_terminal(width: int, views: list[View]) -> None:
    for line in drawn(views, width).splitlines():
        assert len(line) <= width


def test_it_fits_into_80_columns_and_24_lines() -> None:
    assert len(drawn([BUSY], 80, 24).splitlines()) <= 24
    assert "Batches are too small." in drawn([BUSY], 80, 24)


def test_a_daemon_that_is_down_says_so_and_shows_what_was_last_known() -> None:
    shown = " ".join(drawn([view_of(is_down=True)], 100).split())
    assert "connection refused (http://127.0.0.1:9464); below is what was last known" in shown
    never = LiveView()
    never.lost("no answer within 3 s", 0.0)
    shown = drawn([{"url": "http://127.0.0.1:9464", **never.view()}], 100)
    assert "no answer within 3 s" in shown
    assert "last known" not in shown


def test_before_its_first_status_there_is_nothing_to_show() -> None:
    assert "waiting" in drawn([{"url": "http://127.0.0.1:9464", **LiveView().view()}], 80)


def test_several_are_a_table_with_what_to_turn_below() -> None:
    shown = drawn([BUSY, view_of(is_down=True)], 100)
    assert "turn batch.max_records: 4 -> 512" in shown
    assert "connection refused" in shown


@given(st.lists(st.one_of(st.none(), st.floats(0.0, 1e9))), st.integers(0, 50))
def test_a_sparkline_is_as_wide_as_asked_for(values: list[float | None], width: int) -> None:
    assert len(sparkline(values, width)) == width


def test_a_sparkline_rises_with_its_values() -> None:
    assert sparkline([0.0, 5.0, None, 10.0], 4) == "▁▄ ▇"
