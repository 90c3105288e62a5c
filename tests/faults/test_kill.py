"""kill -9, SIGTERM and SIGSTOP at random moments, over a rotated log and a spool: nothing lost, doubled or reordered.

CI runs 50 cycles; `make soak` runs 1,000. The seed is printed with what went wrong.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.e2e.running import running, scores_in
from tests.faults.laying import FOLLOWED, feed, lay_out
from tests.faults.nursery import Nursery
from tests.faults.siege import SHAPES, Siege

CYCLES = 50


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shape", ["jsonl-rotated", "parquet"])
def test_what_is_killed_at_random_moments_goes_on_exactly(tmp_path: Path, shape: str) -> None:
    assert shape in SHAPES
    seed = random.randrange(1_000_000)
    with Nursery() as nursery:
        result = Siege(tmp_path, nursery, shape=shape, seed=seed).run(CYCLES // 2)
    assert result.is_exact, f"seed {seed}: {result.figures}; {result.problems}"
    assert result.cycles == CYCLES // 2
    assert result.audits > result.cycles // 2


@pytest.mark.slow
def test_what_was_appended_before_the_first_checkpoint_is_not_passed_over_after_a_kill(tmp_path: Path) -> None:
    source, sink = f'{FOLLOWED}\nread_from = "end"', 'type = "file"\npath = "out/scores.jsonl"'
    lay_out(tmp_path, source=source, sink=sink, checkpoints="1h")
    config = (tmp_path / "pipeline.toml").read_text()
    feed(tmp_path, 5)
    scores = tmp_path / "out/scores.jsonl"
    with running(tmp_path, config) as daemon:
        daemon.event("file_opened")
        feed(tmp_path, 5, start=5)
        daemon.until(lambda: scores.exists() and scores.read_bytes().count(b"\n") == 5, "five scores")
        daemon.process.kill()
        daemon.process.wait()
    feed(tmp_path, 3, start=10)
    with running(tmp_path, config) as daemon:
        daemon.until(lambda: scores.read_bytes().count(b"\n") == 8, "eight scores")
        assert daemon.stop() == 0
    assert [score["id"] for score in scores_in(scores)] == [f"f0:{number}" for number in range(5, 13)]
