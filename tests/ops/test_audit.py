"""`audit`: agrees after whatever happened to the process, and finds what was taken out or put in."""

import json
import random
import sqlite3
from pathlib import Path

import pytest

from streambatch.storage.folder import StateFolder
from tests.e2e.running import running
from tests.ops.test_verify import OUTPUTS
from tests.ops.traced import Traced, rows

KILLS = 4


@pytest.mark.slow
@pytest.mark.parametrize("output", ["jsonl", "gzip", "arrow", "parquet"])
def test_after_kills(traced: Traced, output: str) -> None:
    size = {"parquet": "200KiB", "gzip": "50KiB"}.get(output)
    rotate = {"sink__scores__rotate": f'{{ max_bytes = "{size}", max_age = "1s" }}'} if size else {}
    memory = {"preprocess": '[{ type = "standardize", fit = "running" }]'}
    often = {"batch__max_records": "128", "delivery__checkpoint_interval": '"20ms"'}
    traced.configure(**often, **(OUTPUTS[output] | rotate), **memory)
    for at in range(4):
        traced.append(f"{at}.jsonl", rows(at * 20_000, 20_000))
    config = (traced.folder / "pipeline.toml").read_text()
    chance = random.Random(output)
    for _ in range(KILLS):
        with running(traced.folder, config) as daemon:
            daemon.event("starting")
            state = traced.folder / "state" / "state.sqlite3"
            before = _checkpoints(state)
            wanted = before + chance.randrange(1, 4)
            daemon.until(lambda: daemon.process.poll() is not None or _checkpoints(state) >= wanted, "a checkpoint")  # noqa: B023
            daemon.process.kill()
            daemon.process.wait()
        assert traced.audited()["is_right"], traced.command("audit")[1]
    traced.run()
    assert traced.audited()["is_right"], traced.command("audit")[1]
    for run in traced.runs():
        found = traced.verified(run)
        assert found["verdict"] == "agrees", found["differences"][:3]


def _checkpoints(state: Path) -> int:
    try:
        with sqlite3.connect(f"file:{state}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT coalesce(sum(checkpoints), 0) FROM progress").fetchone()[0])
    except sqlite3.Error:
        return 0


@pytest.mark.slow
def test_while_it_runs_with_followed_and_rotated_input(traced: Traced) -> None:
    follow = {"source__in__follow": "true", "source__in__path": '"in/a.jsonl*"'}
    traced.configure(delivery__checkpoint_interval='"20ms"', **follow)
    traced.append("a.jsonl", rows(0, 500))
    config = (traced.folder / "pipeline.toml").read_text()
    with running(traced.folder, config) as daemon:
        daemon.until(lambda: _scored(traced) >= 454, "the first are scored")
        traced.check_all()
        (traced.folder / "in" / "a.jsonl").rename(traced.folder / "in" / "a.jsonl.1")
        traced.append("a.jsonl", rows(500, 500))
        daemon.until(lambda: _scored(traced) >= 909, "all are scored")
        daemon.process.kill()
        daemon.process.wait()
    traced.check_all()
    with running(traced.folder, config) as daemon:
        traced.append("a.jsonl", rows(1000, 500))
        daemon.until(lambda: _scored(traced) >= 1363, "the last are scored")
        assert daemon.stop() == 0
    traced.check_all()


def _scored(traced: Traced) -> int:
    code, out = traced.command("runs", "list", "--json")
    return sum(run["counts"]["scored"] for run in json.loads(out)) if code == 0 else 0


@pytest.mark.parametrize("output", ["jsonl", "segments", "csv"])
def test_a_score_too_few_is_found(traced: Traced, output: str) -> None:
    traced.configure(**OUTPUTS[output])
    traced.append("a.jsonl", rows(0, 100))
    traced.run()
    assert traced.audited()["is_right"]
    path = min((traced.folder / "out").iterdir())
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3] + lines[4:]))
    wrong = [check for check in traced.audited()["checks"] if not check["is_right"]]
    assert any(f"{path}: scores" in check["what"] and check["expected"] == check["found"] + 1 for check in wrong)
    assert "verdict: not every record is accounted for" in traced.command("audit")[1]


def test_a_dead_letter_that_is_there_twice_is_found(traced: Traced) -> None:
    traced.configure()
    traced.append("a.jsonl", rows(0, 100))
    traced.run()
    path = traced.folder / "state" / "dead_letters.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    first, second = (f'"position":{json.loads(line)["position"]}' for line in lines[2:4])
    path.write_text(path.read_text().replace(second, first))
    wrong = {check["what"] for check in traced.audited()["checks"] if not check["is_right"]}
    assert "dead letters that are there twice" in wrong


def test_what_was_read_again_on_purpose_is_no_fault(traced: Traced) -> None:
    traced.configure(sink__scores__if_exists='"append"')
    traced.append("a.jsonl", rows(0, 100))
    traced.run()
    assert traced.command("state", "reset", "--source", "in", "--yes")[0] == 0
    traced.run()
    assert traced.audited()["is_right"], traced.command("audit")[1]
    assert traced.command("state", "reset", "--yes")[0] == 0
    traced.run()
    assert traced.audited()["is_right"], traced.command("audit")[1]


def test_blank_lines_between_runs_are_no_gap(traced: Traced) -> None:
    traced.configure()
    traced.append("a.jsonl", rows(0, 20))
    traced.run()
    path = traced.folder / "in" / "a.jsonl"
    path.write_bytes(path.read_bytes() + b"\n\n\n")
    traced.run()
    traced.append("a.jsonl", rows(20, 20))
    traced.run()
    traced.check_all()


def test_without_state_and_while_it_is_held(traced: Traced) -> None:
    traced.configure()
    traced.append("a.jsonl", rows(0, 20))
    code, out = traced.command("audit")
    assert (code, "none yet" in out) == (0, True)
    traced.run()
    with StateFolder(traced.folder / "state"):
        assert traced.audited()["is_right"]
