"""Bytes flipped and cut off in the state and in the spool: told and put aside, never read as if they were whole."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.ports import held_port
from tests.e2e.running import running
from tests.faults.clients import Clients
from tests.faults.laying import feed, lay_out
from tests.faults.nursery import Nursery

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]
RECORDS = 5000
SPOOLED_BYTES = 40_000
"""What a spool holds before it is damaged."""


def flipped(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) // 2, len(data))]


def is_done(counts: dict[str, int]) -> bool:
    return counts["received"] + counts["recovered"] > 0 and counts["unacked"] == 0


@pytest.mark.parametrize("damaged", [flipped, cut])
def test_damaged_state_is_put_aside_or_does_no_harm(
    tmp_path: Path, damaged: Callable[[bytes, random.Random], bytes]
) -> None:
    seed = random.randrange(1_000_000)
    chance, whole = random.Random(seed), tmp_path / "whole"
    outputs = lay_out(whole)
    sent = feed(whole, RECORDS)
    with Nursery() as nursery:
        assert nursery.start(whole, "run", "pipeline.toml").wait(30) == 0
        feed(whole, 500, start=RECORDS)
        for number in range(12):
            folder = tmp_path / str(number)
            shutil.copytree(whole, folder)
            outputs.folder = folder
            state = folder / "state/state.sqlite3"
            content = damaged(state.read_bytes(), chance)
            state.write_bytes(content)
            child = nursery.start(folder, "run", "pipeline.toml")
            code, log = child.wait(30), child.log.read_text()
            what = f"seed {seed}, {number}: exit code {code}; {log[-2000:]}"
            if code == 0:  # what was hit matters to nobody
                sent = {"f0": RECORDS + 500}
            else:
                assert code in (1, 2), what
                assert "Traceback" not in log, what
                assert "state.sqlite3" in log, what
                sent = {"f0": RECORDS}
                kept = [state, *state.parent.glob("state.sqlite3.corrupt-*")]
                assert content in [path.read_bytes() for path in kept if path.suffix != "-wal" and path.exists()], what
            figures = outputs.judge(sent)
            assert figures.is_exact, f"{figures}; {what}"


ONE_FILE = 'type = "file"\npath = "out/scores.jsonl"'
SPOOLED = """type = "http"
listen = "127.0.0.1:{port}"
max_body_bytes = "256KiB"
spool = {{ max_bytes = "8MiB" }}"""


def segments(folder: Path) -> list[Path]:
    return list((folder / "state/spool").rglob("*.seg"))


def size(path: Path) -> int:
    return path.stat().st_size


@pytest.mark.parametrize("damaged", [flipped, cut])
def test_a_damaged_spool_loses_what_was_hit_and_nothing_else(
    tmp_path: Path, damaged: Callable[[bytes, random.Random], bytes]
) -> None:
    """Nothing is acked before the kill, so that all is in the spool."""
    seed = random.randrange(1_000_000)
    chance = random.Random(seed)
    with held_port() as port:
        outputs = lay_out(tmp_path, source=SPOOLED.format(port=port), sink=ONE_FILE, http="127.0.0.1:0")
        with Nursery() as nursery:
            child = nursery.start(tmp_path, "run", "pipeline.toml", "--set", 'delivery.checkpoint_interval="1h"')
            with Clients(port, seed=seed, count=1) as clients:
                child.until(lambda: sum(map(size, segments(tmp_path))) > SPOOLED_BYTES, "enough is in the spool")
            child.kill()
        segment = max(segments(tmp_path), key=size)
        content = segment.read_bytes()
        assert len(content) > 1000
        whole = len(content) // 4
        segment.write_bytes(content[:whole] + damaged(content[whole:], chance))
        with running(tmp_path, (tmp_path / "pipeline.toml").read_text()) as daemon:
            daemon.until(lambda: is_done(daemon.status()["records"]), "all that is left is scored")
            code = daemon.stop()
            daemon.rest()
    assert not clients.unanswered
    sent = clients.counts["c0"]
    what = f"seed {seed}: {json.dumps(daemon.log)[-3000:]}"
    assert code == 0, what
    figures = outputs.judge({"c0": sent})
    assert figures.doubled == figures.out_of_order == figures.wrong == figures.unknown == 0, f"{figures}; {what}"
    assert figures.lost < sent, what
    if damaged is flipped and figures.lost:  # a segment that ends early is what any crash may leave
        assert [line for line in daemon.log if line["level"] in ("warning", "error")], what
