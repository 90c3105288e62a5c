"""Rename, delete, recreate and reused inodes under a writer, followed by a daemon that is killed now and then.

What nobody took away before it was read comes out once and in order. Copy and truncate may lose what was written
between the two, and must double nothing.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.laying import FOLLOWED, lay_out
from tests.faults.nursery import Nursery
from tests.faults.progress import caught_up
from tests.faults.records import lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]
STEPS = 60
KILL_EVERY = 12


class Log:
    """Files that a stream is written to, one after the other. sent: how many records each stream has."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder, self.chance, self.path = folder, chance, folder / "log.jsonl"
        self.sent: dict[str, int] = {}
        self.bytes = 0
        self.removable: list[Path] = []
        self._number = 0

    def write(self) -> None:
        """Append records of the stream of this file, torn into two writes."""
        stream = f"f{self._number}"
        start = self.sent.get(stream, 0)
        count = self.chance.randint(1, 120)
        data = lines(stream, start, start + count)
        at = self.chance.randrange(len(data))
        for part in (data[:at], data[at:]):
            with self.path.open("ab") as file:
                file.write(part)
            if self.chance.random() < 0.3:
                time.sleep(self.chance.uniform(0, 0.05))  # for the daemon to see it torn
        self.sent[stream] = start + count
        self.bytes += len(data)

    def rename(self) -> None:
        """Rotate as logrotate does: the last files move on by one, and the log becomes the first of them."""
        if self.path.exists():
            for number in range(len(list(self.folder.glob("log.jsonl.*"))), 0, -1):
                (self.folder / f"log.jsonl.{number}").rename(self.folder / f"log.jsonl.{number + 1}")
            self.path.rename(self.folder / "log.jsonl.1")
            self._number += 1

    def recreate(self) -> None:
        """Remove the log and make a new one, which is likely to get the inode of the old one."""
        self.path.unlink(missing_ok=True)
        self._number += 1
        self.write()

    def truncate(self) -> None:
        """Copy the log away to where nobody looks, and begin it again at its first byte."""
        if self.path.exists():
            shutil.copy(self.path, self.folder / "copy")
            os.truncate(self.path, 0)
            self._number += 1


def steps(chance: random.Random, kinds: list[str]) -> Iterator[str]:
    for _ in range(STEPS):
        yield "write" if chance.random() < 0.7 else chance.choice(kinds)


@pytest.mark.parametrize("kinds", [["rename"], ["recreate"], ["truncate"], ["rename", "recreate", "truncate"]])
def test_whatever_is_done_to_a_log_between_its_records(tmp_path: Path, kinds: list[str]) -> None:
    """What takes records away waits until they were read; a rename needs no such care."""
    seed = random.randrange(1_000_000)
    chance = random.Random(seed)
    outputs = lay_out(tmp_path, source=FOLLOWED.replace("*.jsonl", "log.jsonl*"))
    log = Log(tmp_path / "in", chance)
    with Nursery() as nursery:
        child = nursery.start(tmp_path, "run", "pipeline.toml")
        for number, step in enumerate(steps(chance, kinds)):
            if step in ("recreate", "truncate"):
                caught_up(tmp_path, child, sum(log.sent.values()))
            getattr(log, step)()
            if number % KILL_EVERY == KILL_EVERY - 1:
                child.wait(chance.uniform(0, 0.3))
                child.kill()
                child = nursery.start(tmp_path, "run", "pipeline.toml")
        caught_up(tmp_path, child, sum(log.sent.values()))
        child.until_running()
        child.send(signal.SIGTERM)
        assert child.wait(30) == 0, child.log.read_text()[-3000:]
    figures = outputs.judge(log.sent)
    assert figures.is_exact, f"seed {seed}: {figures}; {child.log.read_text()[-3000:]}"
