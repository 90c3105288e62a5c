"""A disk of 1 MiB under the output, and under the state: the daemon stays up, says why, and goes on exactly."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.running import Daemon, running
from tests.faults.laying import FOLLOWED, feed, lay_out
from tests.programs import root

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
RECORDS = 60_000
"""Their scores take twice what the disk holds."""
QUEUE = 2000
LIMITS = f'[queue]\nmax_records = {QUEUE}\n[limits]\nmemory = "16MiB"\n[batch]\nmax_records = 256'


@contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """Mount a disk of so many bytes; only root can."""
    root()
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def grow(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)


def reasons(daemon: Daemon) -> str:
    """Return why the daemon isn't ready; nothing if it is."""
    code, text = daemon.get("/readyz")
    return text.decode() if code == 503 else ""


def is_bounded(daemon: Daemon) -> bool:
    status = daemon.status()
    assert status["queue"]["records"] <= QUEUE, status["queue"]
    assert status["memory"]["bytes"] <= status["memory"]["capacity_bytes"] == 16 << 20, status["memory"]
    return True


def done(daemon: Daemon) -> int:
    totals = daemon.status()["records"]
    return int(totals["scored"] + totals["dead_lettered"])


@pytest.mark.parametrize("which", ["output", "dead letters", "state"])
def test_a_full_disk_holds_all_and_loses_nothing(tmp_path: Path, which: str) -> None:
    folder = tmp_path / "work"
    where = {"output": "out", "dead letters": "dead", "state": "state"}[which]
    folder.mkdir()
    with small_disk(folder / where) as disk:
        outputs = lay_out(folder, source=FOLLOWED, dead="dead/dead.jsonl", http="127.0.0.1:0", more=LIMITS)
        sent = feed(folder, RECORDS)
        if which != "output":  # what they write is too little to fill it
            filler = disk / "filler"
            filler.write_bytes(bytes((1 << 20) - (8192 if which == "dead letters" else 360_000)))
        with running(folder, (folder / "pipeline.toml").read_text()) as daemon:
            daemon.until(lambda: "no space left" in reasons(daemon).lower() or "full" in reasons(daemon), "it is full")
            held = [done(daemon) for _ in range(20) if is_bounded(daemon)]
            assert held[-1] < RECORDS
            assert daemon.get("/livez")[0] == 200
            sent = feed(folder, 1000, start=RECORDS)
            grow(disk)
            daemon.until(lambda: done(daemon) == RECORDS + 1000, "all is done")
            daemon.until(lambda: not reasons(daemon), "it is ready")
            assert daemon.stop() == 0
        figures = outputs.judge(sent)
        assert figures.is_exact, figures
