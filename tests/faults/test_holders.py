"""Two daemons on one state, a lock left behind by one that was killed, and daemons that are stopped and go on."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.laying import FINITE, FOLLOWED, feed, lay_out
from tests.faults.nursery import Nursery
from tests.faults.progress import caught_up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_a_second_daemon_names_the_first_and_a_stale_lock_blocks_nobody(tmp_path: Path) -> None:
    outputs = lay_out(tmp_path, source=FOLLOWED)
    sent = feed(tmp_path, 3000)
    with Nursery() as nursery:
        first = nursery.start(tmp_path, "run", "pipeline.toml")
        caught_up(tmp_path, first, 3000)
        second = nursery.start(tmp_path, "run", "pipeline.toml")
        assert second.wait(20) == 2
        assert f"held by process {first.pid}" in second.log.read_text()
        first.send(signal.SIGSTOP)  # one that doesn't answer holds its state all the same
        third = nursery.start(tmp_path, "run", "pipeline.toml")
        assert third.wait(20) == 2
        assert f"held by process {first.pid}" in third.log.read_text()
        first.kill()
        assert (tmp_path / "state/lock").read_text() == f"{first.pid}\n"
        sent = feed(tmp_path, 500, start=3000)
        fourth = nursery.start(tmp_path, "run", "pipeline.toml")
        caught_up(tmp_path, fourth, 3500)
        fourth.send(signal.SIGTERM)
        assert fourth.wait(20) == 0, fourth.log.read_text()
    assert outputs.judge(sent).is_exact


def test_an_output_has_one_writer_whatever_its_state(tmp_path: Path) -> None:
    outputs = lay_out(tmp_path, source=FOLLOWED)
    sent = feed(tmp_path, 1000)
    with Nursery() as nursery:
        first = nursery.start(tmp_path, "run", "pipeline.toml")
        caught_up(tmp_path, first, 1000)
        other = nursery.start(tmp_path, "run", "pipeline.toml", "--set", 'state_dir="other"')
        assert other.wait(20) == 2
        first.send(signal.SIGTERM)
        assert first.wait(20) == 0
    assert outputs.judge(sent).is_exact


def test_stopped_at_random_moments_and_continued(tmp_path: Path) -> None:
    seed = random.randrange(1_000_000)
    chance = random.Random(seed)
    outputs = lay_out(tmp_path, source=FINITE)
    sent = feed(tmp_path, 50_000)
    with Nursery() as nursery:
        child = nursery.start(tmp_path, "run", "pipeline.toml")
        while child.wait(chance.uniform(0, 0.2)) is None:
            child.send(signal.SIGSTOP)
            time.sleep(chance.uniform(0, 0.2))  # while it is stopped
            child.send(signal.SIGCONT)
        assert child.code == 0, child.log.read_text()[-3000:]
    figures = outputs.judge(sent)
    assert figures.is_exact, f"seed {seed}: {figures}"
