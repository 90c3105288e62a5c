"""Servers that stall, reset, answer 500, or take a batch and die before they answer, under a daemon that is killed.

At least once and in order; who tells batches apart by their id has each record exactly once.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.faults.laying import feed, lay_out
from tests.faults.nursery import Nursery
from tests.faults.oracle import Outputs
from tests.faults.servers import FAULTS, BadServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]
RECORDS = 4000
KILLS = 6


def sink(server: BadServer) -> str:
    return f'type = "http"\nurl = "{server.url}"\ntimeout = "300ms"'


@pytest.mark.parametrize("kills", [0, KILLS])
def test_a_server_that_fails_in_every_way_gets_all(tmp_path: Path, kills: int) -> None:
    seed = random.randrange(1_000_000)
    chance = random.Random(seed)
    with BadServer(seed=seed) as server, Nursery() as nursery:
        outputs = lay_out(tmp_path, sink=sink(server), more="[batch]\nmax_records = 64\nmax_wait = '5ms'")
        sent = feed(tmp_path, RECORDS)
        for _ in range(kills):
            child = nursery.start(
                tmp_path, "run", "pipeline.toml", "--set", f"batch.max_records={chance.randint(20, 90)}"
            )
            child.wait(chance.uniform(0.3, 1.5))
            if child.code is None:
                child.kill()
        child = nursery.start(tmp_path, "run", "pipeline.toml")
        assert child.wait(100) == 0, child.log.read_text()[-3000:]
    what = f"seed {seed}"
    if not kills:
        assert {*FAULTS, ""} == server.met, what
    assert judged(outputs, [body for _, body in server.taken], sent, at_least_once=True), what
    told_apart = dict(server.taken)
    assert all(told_apart[name] == body for name, body in server.taken), f"{what}: an id came with other scores"
    assert judged(outputs, list(told_apart.values()), sent), what


def judged(outputs: Outputs, bodies: list[bytes], sent: dict[str, int], *, at_least_once: bool = False) -> bool:
    """Judge what came as if it were in a file."""
    path = outputs.folder / "out/scores.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(bodies))
    assert all(json.loads(line) for line in path.read_bytes().splitlines())
    figures = outputs.judge(sent, at_least_once=at_least_once)
    assert figures.is_exact, figures
    return True
