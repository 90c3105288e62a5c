"""A daemon as a real process: a config, its log lines as they come, its report when it has ended."""

from __future__ import annotations

import json
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

PATIENCE_SECONDS = 30.0
"""How long a condition may take to come true: a bound for hangs, nothing that a passing test waits out."""


class Daemon:
    """A `streambatch run` process. Use `running`."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process, self.folder = process, folder
        self.log: list[dict[str, Any]] = []
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self._lines.put(json.loads(line))
            except ValueError:
                self._lines.put({"event": "unreadable", "line": line.decode(errors="replace")})
        self._lines.put(None)

    def event(self, name: str, **fields: Any) -> dict[str, Any]:
        """Wait for a log line of this name and with these fields, and return it."""
        wanted = {"event": name, **fields}
        for line in self.log:
            if wanted.items() <= line.items():
                return line
        for line in self._coming():
            if wanted.items() <= line.items():
                return line
        raise AssertionError(f"the daemon ended without saying {wanted}; it said {self.log}")

    def next_event(self, *names: str) -> dict[str, Any]:
        """Wait for a log line of one of these names after those that were waited for before, and return it."""
        for line in self._coming():
            if line["event"] in names:
                return line
        raise AssertionError(f"the daemon ended without saying any of {names}; it said {self.log}")

    def _coming(self) -> Iterator[dict[str, Any]]:
        while (line := self._next_line()) is not None:
            self.log.append(line)
            yield line

    def _next_line(self) -> dict[str, Any] | None:
        try:
            return self._lines.get(timeout=PATIENCE_SECONDS)
        except queue.Empty:
            raise AssertionError(f"nothing said for {PATIENCE_SECONDS} s; before: {self.log}") from None

    def address(self, source: str) -> tuple[str, int]:
        """Return host and port that a source listens on."""
        host, _, port = self.event("listening", source=source)["address"].rpartition(":")
        return host, int(port)

    def send(self, source: str, payload: bytes) -> None:
        """Send all of it on one connection; return when the source has read it to its end."""
        with socket.create_connection(self.address(source), timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(payload)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""

    def get(self, path: str, headers: Mapping[str, str] = MappingProxyType({})) -> tuple[int, bytes]:
        """Return status and body of an admin page."""
        return self._ask("GET", path, headers, seconds=5)

    def post(self, path: str) -> tuple[int, bytes]:
        """Have an admin page do what it does; return status and body of its answer."""
        return self._ask("POST", path, {}, seconds=10)

    def _ask(self, method: str, path: str, headers: Mapping[str, str], *, seconds: float) -> tuple[int, bytes]:
        url = f"{self.event('admin_listening')['url']}{path}"
        request = urllib.request.Request(url, headers=dict(headers), method=method)
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def status(self) -> dict[str, Any]:
        """Return the snapshot that `/status` shows."""
        found: dict[str, Any] = json.loads(self.get("/status")[1])
        return found

    def until(self, is_true: Callable[[], bool], what: str) -> None:
        """Wait for a condition outside the daemon that no event tells of."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_true():
            assert self.process.poll() is None, f"ended before {what}: {self.rest()}"
            assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s: {what}; log: {self.log}"
            time.sleep(0.01)  # another process can only be asked again

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, by default SIGTERM, and return the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(PATIENCE_SECONDS)

    def rest(self) -> list[dict[str, Any]]:
        """Return all log lines of a daemon that has ended."""
        self.process.wait(PATIENCE_SECONDS)
        list(self._coming())
        return self.log

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "report.json").read_bytes())
        return found


@contextmanager
def running(
    folder: Path, config: str, *options: str, stdin: int | IO[bytes] = subprocess.DEVNULL, stdout: int | IO[bytes] = 2
) -> Iterator[Daemon]:
    """Run a pipeline from `config` in `folder`; whatever happens, the process is gone afterwards.

    stdout: where scores go that are written there; by default to the tests' own stderr, which pytest shows.
    """
    (folder / "pipeline.toml").write_text(config)
    command = [sys.executable, "-m", "streambatch", "run", "pipeline.toml", "--report", "report.json", *options]
    process = subprocess.Popen(command, cwd=folder, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)
    daemon = Daemon(process, folder)
    try:
        yield daemon
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        daemon._reader.join()
        for stream in (process.stderr, process.stdout, process.stdin):
            if stream is not None:
                stream.close()


def run_to_end(folder: Path, config: str, *options: str, code: int = 0, **streams: Any) -> dict[str, Any]:
    """Run a pipeline to the end of its input and return its report."""
    with running(folder, config, *options, **streams) as daemon:
        assert daemon.wait() == code, daemon.rest()
        return daemon.report


def scores_in(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSONL file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def is_balanced(records: dict[str, int]) -> bool:
    """Tell whether the accounting identity holds in a report's counts."""
    out = ("scored", "dead_lettered", "dropped", "unacked")
    return records["received"] + records["recovered"] == sum(records[name] for name in out)


def quoted(values: Sequence[str]) -> str:
    """Return a TOML list of strings."""
    return json.dumps(list(values))
