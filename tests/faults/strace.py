"""Runs a daemon under strace, which makes chosen system calls fail, or tells of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.programs import program

INJECTED = "(INJECTED)"
RUN_SECONDS = 60
"""How long a run may take: a bound for hangs, on a machine that is busy too."""
_CALL = re.compile(r"^(\d+) +(\w+)\((\d+<[^>]*>)?.*?(?:= (-?\d+)|(<unfinished \.\.\.>))")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>.*= (-?\d+)")


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A run that has ended. code: its exit code; None where it had to be killed. trace: what strace wrote."""

    code: int | None
    log: str
    trace: str

    @property
    def is_injected(self) -> bool:
        return INJECTED in self.trace


def run_traced(folder: Path, paths: Sequence[Path], calls: str, inject: str = "") -> Traced:
    """Run the folder's pipeline to its end, with the calls on these paths traced.

    calls: names, with commas between. inject: what is to happen to some of them, such as `fsync:error=EIO:when=3`; each
    thread counts its own calls.
    """
    trace, log = folder / "trace", folder / "log"
    command = [program("strace"), "-f", "-qq", "-y", "-s", "0", "--seccomp-bpf", "-o", str(trace)]
    command += ["-e", f"trace={calls}"]
    command += [part for path in paths for part in ("-P", str(path))]
    command += ["-e", f"inject={inject}"] if inject else []
    with log.open("wb") as out:
        daemon = subprocess.Popen(
            [*command, sys.executable, "-m", "streambatch", "run", "pipeline.toml"],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = daemon.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(daemon.pid, signal.SIGKILL)  # strace alone would leave the daemon behind
            daemon.wait()
            code = None
    return Traced(code=code, log=log.read_text(errors="replace"), trace=trace.read_text(errors="replace"))


def durable_length(trace: str) -> int:
    """Return how many bytes of a file, the only one traced, a successful fsync has made durable."""
    written = durable = 0
    begun: dict[tuple[str, str], int] = {}
    for text in trace.splitlines():
        if (found := _CALL.match(text)) is not None:
            thread, call, _, result, unfinished = found.groups()
            if unfinished:
                begun[thread, call] = written
                continue
            at = written
        elif (found := _RESUMED.match(text)) is not None:
            thread, call, result = found.groups()
            at = begun.pop((thread, call))
        else:
            continue
        if call == "write":
            written += max(int(result), 0)
        elif call in ("fsync", "fdatasync") and int(result) == 0:
            durable = max(durable, at)
    return durable
