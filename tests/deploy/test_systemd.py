"""The units are valid and confine what they run, and the daemon does all it should when it is so confined."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streambatch.core.report import STUCK_SECONDS
from streambatch.durability.options import Delivery
from tests.deploy.units import SYSTEMD, confined, sandbox_of, settings_of, why_not_confined
from tests.e2e.running import PATIENCE_SECONDS, Daemon, scores_in
from tests.programs import needs

DAEMON, BATCH = SYSTEMD / "streambatch@.service", SYSTEMD / "streambatch-batch@.service"
UNITS = sorted(path for path in SYSTEMD.iterdir() if path.suffix in (".service", ".timer"))
EXPOSURE_MAX = 1.5
needs_systemd = needs("systemd-analyze", "bwrap")
_REASON = why_not_confined()
needs_sandbox = pytest.mark.skipif(_REASON is not None, reason=_REASON or "")

CONFIG = """
name = "rides"
source.live = { type = "tcp", listen = "127.0.0.1:0" }
record = { id = "id", features = "x", shape = [1] }
model = { type = "linear", path = "model.npz" }
sink.scores = { type = "file", path = "${STATE_DIRECTORY}/scores.jsonl" }
delivery = { checkpoint_interval = "20ms" }
http = { listen = "127.0.0.1:0", token = "${ADMIN_TOKEN}" }
"""
ATTEMPTS = """
import ctypes, os, socket, sys

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p

def executable():
    if libc.mmap(None, ctypes.c_size_t(4096), 6, 0x22, -1, ctypes.c_long(0)) == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")

attempts = {
    "write to the system": lambda: open("/etc/streambatch-was-here", "w"),
    "write to the config": lambda: open(sys.argv[1] + "/etc/rides.toml", "a"),
    "open a raw socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "make code": executable,
    "raise a limit": lambda: os.sched_setaffinity(0, {0}),
    "become root": lambda: os.setuid(0),
    "write to the state": lambda: open(sys.argv[1] + "/state/x", "w"),
    "open a socket": lambda: socket.socket(),
}
for name, attempt in attempts.items():
    try:
        attempt()
        print(f"{name}: done")
    except OSError:
        print(f"{name}: refused")
"""


def copies(folder: Path) -> list[Path]:
    """Return copies of the units that name a program which is there, for systemd looks."""
    program = str(Path(sys.executable).with_name("streambatch"))
    for unit in UNITS:
        (folder / unit.name).write_text(unit.read_text().replace("/opt/streambatch/bin/streambatch", program))
    return [folder / unit.name for unit in UNITS]


@needs_systemd
def test_units_are_valid(tmp_path: Path) -> None:
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *copies(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", [DAEMON, BATCH], ids=lambda unit: unit.stem)
def test_units_expose_little(unit: Path, tmp_path: Path) -> None:
    copies(tmp_path)
    found = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", tmp_path / unit.name],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (level,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", found.stdout)
    assert float(level) <= EXPOSURE_MAX


def test_both_services_are_confined_alike() -> None:
    assert sandbox_of(DAEMON)
    assert sandbox_of(DAEMON) == sandbox_of(BATCH)


def test_times_fit_the_defaults() -> None:
    settings = settings_of(DAEMON)
    assert seconds_of(settings["TimeoutStopSec"][0]) > Delivery().drain_timeout + 10
    assert seconds_of(settings["WatchdogSec"][0]) > STUCK_SECONDS
    assert settings["RestartPreventExitStatus"] == ["2"]


def seconds_of(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|min)", text).groups()  # type: ignore[union-attr]  # a unit that says else fails
    return int(number) * {"s": 1, "min": 60}[unit]


@needs_systemd
@needs_sandbox
def test_the_sandbox_confines(tmp_path: Path) -> None:
    laid_out(tmp_path)
    with confined(DAEMON, tmp_path, tmp_path / "state") as (prefix, descriptors):
        done = subprocess.run(
            [*prefix, sys.executable, "-c", ATTEMPTS, tmp_path],
            pass_fds=descriptors, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused = ["write to the system", "write to the config", "open a raw socket", "make code", "raise a limit"]
    assert done.stdout.splitlines() == [
        *(f"{name}: refused" for name in [*refused, "become root"]),
        "write to the state: done",
        "open a socket: done",
    ]


@pytest.mark.slow
@needs_systemd
@needs_sandbox
def test_a_daemon_in_the_sandbox(tmp_path: Path) -> None:
    laid_out(tmp_path)
    scores = tmp_path / "state/scores.jsonl"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify.sock"))
        systemd.settimeout(PATIENCE_SECONDS)
        with running_confined(tmp_path) as (daemon, pid):
            address = daemon.address("live")
            assert_confined(pid)
            with socket.create_connection(address) as client:
                client.sendall(b"".join(b'{"id": %d, "x": [%d]}\n' % (at, at) for at in range(100)))
            daemon.until(lambda: len(lines_of(scores)) == 100, "all scored")
            assert daemon.get("/livez") == (200, b"ok\n")
            os.kill(pid, signal.SIGHUP)  # as ExecReload does
            daemon.event("reloaded")
            os.kill(pid, signal.SIGTERM)
            assert daemon.wait() == 0, daemon.rest()
        heard = heard_by(systemd)
    assert [score["id"] for score in scores_in(scores)] == list(range(100))
    assert (tmp_path / "state/state.sqlite3").exists()
    told = [heard.index(line) for line in ("READY=1", "RELOADING=1", "STOPPING=1", "STATUS=stopped")]
    assert told == sorted(told)
    assert heard.count("READY=1") == 2
    assert "WATCHDOG=1" in heard


@contextmanager
def running_confined(folder: Path) -> Iterator[tuple[Daemon, int]]:
    """Run the daemon as its unit does, and yield it with the pid it has; whatever happens, it is gone afterwards."""
    state, (read_end, write_end) = folder / "state", os.pipe()
    environ = {
        "PATH": os.environ["PATH"], "NOTIFY_SOCKET": str(folder / "notify.sock"), "WATCHDOG_USEC": "60000000",
        "STATE_DIRECTORY": str(state), "CREDENTIALS_DIRECTORY": str(folder / "credentials"),
    }  # fmt: skip
    run = [sys.executable, "-m", "streambatch", "run", str(folder / "etc/rides.toml")]
    with confined(DAEMON, folder, state) as (prefix, descriptors), os.fdopen(read_end) as told:
        process = subprocess.Popen(
            [*prefix, "--json-status-fd", str(write_end), *run],
            pass_fds=[*descriptors, write_end], cwd=state, env=environ, stderr=subprocess.PIPE,
        )  # fmt: skip
        os.close(write_end)
        daemon = Daemon(process, folder)
        pid = int(json.loads(told.readline())["child-pid"])
        try:
            yield daemon, pid
        finally:
            if process.poll() is None:
                os.kill(pid, signal.SIGKILL)
            process.wait()
            daemon._reader.join()
            assert process.stderr is not None
            process.stderr.close()


def laid_out(folder: Path) -> None:
    """Put config, credentials and state where a unit has them."""
    for name in ("etc", "credentials", "state"):
        (folder / name).mkdir()
    (folder / "etc/rides.toml").write_text(CONFIG)
    (folder / "credentials/ADMIN_TOKEN").write_text("open-sesame\n")
    make = "import numpy; numpy.savez('model.npz', weights=numpy.ones(1), bias=0.5)"
    subprocess.run([sys.executable, "-c", make], cwd=folder / "etc", check=True)


def assert_confined(pid: int) -> None:
    """Check with the kernel that a process may do as little as the unit says."""
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []


def heard_by(systemd: socket.socket) -> list[str]:
    """Return what has been said, a line each."""
    heard: list[str] = []
    while "STATUS=stopped" not in heard:
        heard += systemd.recv(4096).decode().split("\n")
    return heard
