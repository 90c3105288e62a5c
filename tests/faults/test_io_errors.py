"""EIO and ENOSPC from each fsync, write, rename and open in turn: a run holds or says why it ends, and the next is
exact.

CI tries the first few calls of each kind and then ever fewer; with ALL_FAULTS=1 every single one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path

import pytest

from tests.faults.laying import feed, lay_out
from tests.faults.oracle import Outputs
from tests.faults.strace import Traced, durable_length, run_traced

RECORDS = 1500
ERRORS = ("EIO", "ENOSPC")
CALLS = {
    "sync": "fsync,fdatasync",
    "write": "write,pwrite64",
    "rename": "rename,renameat,renameat2",
    "open": "openat",
}
NAMES = [
    "out", "state", "out/dead.jsonl", "out/scores.jsonl", "out/scores.jsonl.open", "state/lock",
    *(f"out/scores-{number:08}.jsonl" for number in range(1, 6)),
    *(f"state/state.sqlite3{end}" for end in ("", "-wal", "-shm", "-journal", ".new", ".new-wal", ".new-shm")),
]  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def turns() -> Iterator[tuple[int, str]]:
    """Yield which call is to fail, rising, and how: all of them, or in ever larger steps and by turns."""
    if os.environ.get("ALL_FAULTS"):
        yield from ((number, error) for number in count(1) for error in ERRORS)
    number = 1
    for error in cycle(ERRORS):
        yield number, error
        number += max(1, number // 2)


def run_clean(folder: Path) -> None:
    command = [sys.executable, "-m", "streambatch", "run", "pipeline.toml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


@pytest.mark.parametrize("kind", CALLS)
def test_each_call_in_turn(tmp_path: Path, kind: str) -> None:
    for turn, error in turns():
        folder = tmp_path / f"{turn}-{error}"
        outputs = lay_out(folder, more="[batch]\nmax_records = 100")
        sent = feed(folder, RECORDS)
        paths = [folder / name for name in NAMES]
        traced = run_traced(folder, paths, CALLS[kind], f"{CALLS[kind]}:error={error}:when={turn}")
        what = f"{kind} {turn} fails with {error}: {traced.log[-2000:]}\n{traced.trace[-3000:]}"
        assert traced.code in (0, 1, 2), what
        if traced.code:
            assert '"event":"failed"' in traced.log or "error: " in traced.log, what
        if traced.code == 0:
            assert '"event":"stopped"' in traced.log, what
        run_clean(folder)
        figures = outputs.judge(sent)
        assert figures.is_exact, f"{figures}; {what}"
        assert not list(folder.glob("out/*.open")), what
        if not traced.is_injected:
            assert turn > 1
            return


@pytest.mark.parametrize("turn", [2, 3, 5])
def test_what_a_failed_fsync_left_open_was_never_acked(tmp_path: Path, turn: int) -> None:
    """After it the system may have thrown away all that was written since the last one; here it has."""
    folder, records = tmp_path / "few", 100_000
    outputs, sent, traced = run_until_fsync_fails(folder, records, turn)
    while not traced.is_injected:  # how often a run syncs is up to the machine, and a longer one does so more often
        assert traced.code == 0, traced.log
        folder, records = tmp_path / str(4 * records), 4 * records
        outputs, sent, traced = run_until_fsync_fails(folder, records, turn)
    scores = folder / "out/scores.jsonl"
    assert traced.code == 1, traced.log
    assert "fsync" in traced.log
    durable = durable_length(traced.trace)
    assert durable < scores.stat().st_size
    with scores.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(durable)
        file.write(bytes(size - durable))
    run_clean(folder)
    figures = outputs.judge(sent)
    assert figures.is_exact, f"{figures}; {traced.log[-2000:]}\n{traced.trace[-2000:]}"


def run_until_fsync_fails(folder: Path, records: int, turn: int) -> tuple[Outputs, dict[str, int], Traced]:
    """Run over so many records, with one fsync of the scores failing. Returns outputs, what was sent, and the run."""
    outputs = lay_out(folder, sink='type = "file"\npath = "out/scores.jsonl"', checkpoints="5ms")
    sent = feed(folder, records)
    inject = f"fsync,fdatasync:error=EIO:when={turn}"
    return outputs, sent, run_traced(folder, [folder / "out/scores.jsonl"], "write,fsync,fdatasync", inject)


def test_the_trace_tells_what_is_durable(tmp_path: Path) -> None:
    lay_out(tmp_path, sink='type = "file"\npath = "out/scores.jsonl"', checkpoints="5ms")
    feed(tmp_path, 20_000)
    scores = tmp_path / "out/scores.jsonl"
    traced = run_traced(tmp_path, [scores], "write,fsync,fdatasync")
    assert traced.code == 0, traced.log
    assert durable_length(traced.trace) == scores.stat().st_size
