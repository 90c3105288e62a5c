"""kill -9, SIGTERM and SIGSTOP at random moments, over a rotated log and a spool: nothing lost, doubled or reordered.

CI runs 50 cycles; `make soak` runs 1,000. The seed is printed with what went wrong.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

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
