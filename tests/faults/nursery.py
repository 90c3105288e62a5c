"""Starts daemons as processes of their own that have all imports behind them, so that a cycle is short.

    with Nursery() as nursery:
        child = nursery.start(folder, "run", "pipeline.toml")
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(5) == -signal.SIGKILL

A process that has imported streambatch, and has done nothing else, forks for each. A child is a whole process: it has
its own signals, files and exit code, and runs the command line from its first line.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

PATIENCE_SECONDS = 40.0
"""How long a condition may take to come true: a bound for hangs, nothing that a passing test waits out."""


@dataclass
class Child:
    """A process. log: the file with its stdout and stderr."""

    pid: int
    log: Path
    nursery: Nursery
    code: int | None = None
    _fd: int = field(default=-1)

    def __post_init__(self) -> None:
        self._fd = os.pidfd_open(self.pid)

    def send(self, number: int) -> None:
        """Send a signal; one to a process that has ended is nothing."""
        if self.code is None:
            signal.pidfd_send_signal(self._fd, number)

    def wait(self, seconds: float) -> int | None:
        """Wait so long for its end. Returns its exit code, the negative number of the signal that killed it, or None
        while it runs."""
        if self.code is None and select.select([self._fd], [], [], max(seconds, 0))[0]:
            self.code = self.nursery.reap(self.pid)
            os.close(self._fd)
        return self.code

    def until_running(self) -> None:
        """Wait until its pipeline runs, or it has ended."""
        self._until(lambda: self.log.exists() and '"state":"running"' in self.log.read_text(), "running")

    def until(self, is_true: Callable[[], bool], what: str) -> None:
        """Wait until something is true; it must not end before."""
        self._until(is_true, what)
        assert self.code is None or is_true(), f"ended with {self.code} before {what}: {self._said()}"

    def _until(self, is_true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_true() and self.wait(0.02) is None:
            assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s: {what}; {self._said()}"

    def _said(self) -> str:
        return self.log.read_text()[-3000:] if self.log.exists() else "it said nothing"

    def kill(self) -> None:
        """Kill it, at once, and wait for that."""
        self.send(signal.SIGKILL)
        assert self.wait(30) is not None


class Nursery:
    """The process that forks. Enter it to start it; leaving it kills what still runs."""

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._started = 0

    def __enter__(self) -> Nursery:
        command = [sys.executable, "-m", "tests.faults.nursery"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to: IO[bytes] = self._process.stdin
        self._from: IO[bytes] = self._process.stdout
        self._from.readline()  # it has imported everything
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for child in self._children:
            if child.code is None:
                child.kill()
        self._to.close()
        self._process.wait(30)
        self._from.close()

    def start(self, folder: Path, *arguments: str) -> Child:
        """Start `streambatch` with these arguments in a folder."""
        self._started += 1
        log = folder / f"{self._started:06}-{arguments[0]}.log"
        child = Child(self._ask({"folder": str(folder), "arguments": arguments, "log": str(log)}), log, self)
        self._children = [each for each in self._children if each.code is None]
        self._children.append(child)
        return child

    def reap(self, pid: int) -> int:
        """Return the exit code of a child that has ended."""
        return self._ask({"reap": pid})

    def _ask(self, question: object) -> int:
        self._to.write(json.dumps(question).encode() + b"\n")
        self._to.flush()
        return int(self._from.readline())


def main() -> None:
    """Answer each line of stdin with a number: the process started, or how one has ended."""
    import uvicorn  # noqa: F401  # what a daemon would import while it runs

    import streambatch

    for module in pkgutil.walk_packages(streambatch.__path__, "streambatch."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    print("ready", flush=True)
    for text in sys.stdin.buffer:
        asked = json.loads(text)
        if "reap" in asked:
            print(os.waitstatus_to_exitcode(os.waitpid(asked["reap"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if not pid:
            _become(asked)
        print(pid, flush=True)


def _become(asked: dict[str, str]) -> None:
    """Be a process that was just started with the command line."""
    code = 1
    try:
        os.chdir(asked["folder"])
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((null, 0), (log, 1), (log, 2)):
            os.dup2(old, new)
        for fd in (null, log):
            os.close(fd)
        sys.argv = ["streambatch", *asked["arguments"]]
        from streambatch.cli.app import main as command_line

        command_line()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
