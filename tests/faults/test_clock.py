"""A wall clock that is set back an hour, or ahead a day, while a daemon runs and between two of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.laying import FOLLOWED, feed, lay_out
from tests.faults.nursery import PATIENCE_SECONDS
from tests.faults.progress import done
from tests.programs import program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
STEPS = ("+0", "-1h", "+0", "+1d")
"""The clock of each part of the test, against the real one."""


def library() -> str:
    """Return the library that shifts the clock of who loads it."""
    program("faketime")
    shown = subprocess.run(["faketime", "-f", "+0", "env"], capture_output=True, text=True, check=True).stdout
    return next(line.partition("=")[2] for line in shown.splitlines() if line.startswith("LD_PRELOAD="))


def daemon(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "streambatch", "run", "pipeline.toml"],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_clock_that_is_set_changes_nothing_but_dates(tmp_path: Path, is_restarted: bool) -> None:
    sink = 'type = "file"\npath = "out/scores.jsonl"\nrotate = { max_bytes = "16KiB", max_age = "300ms" }'
    outputs, sent, shift = lay_out(tmp_path, source=FOLLOWED, sink=sink), {"f0": 0}, tmp_path / "shift"
    shift.write_text("+0")
    environment = {
        **os.environ, "LD_PRELOAD": library(), "FAKETIME_TIMESTAMP_FILE": str(shift), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    process = daemon(tmp_path, environment)
    try:
        for number, clock in enumerate(STEPS):
            shift.with_suffix(".new").write_text(clock)
            shift.with_suffix(".new").rename(shift)
            if is_restarted and number:
                process.terminate()
                assert process.wait(30) == 0, (tmp_path / "log").read_text()[-3000:]
                process = daemon(tmp_path, environment)
            sent = feed(tmp_path, 2000, start=sent["f0"])
            deadline = time.monotonic() + PATIENCE_SECONDS
            while done(tmp_path) < sent["f0"]:
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                assert time.monotonic() < deadline, f"{clock}: {done(tmp_path)} of {sent}"
                time.sleep(0.02)  # a checkpoint tells nobody that it was made
        process.terminate()
        assert process.wait(30) == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        process.kill()
        process.wait()
    dates = {line[14:24] for line in (tmp_path / "log").read_text().splitlines() if line.startswith('{"timestamp"')}
    assert len(dates) > 1, "the clock was not set"
    assert outputs.judge(sent).is_exact
