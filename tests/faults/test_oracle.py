"""The oracle itself: each thing that can go wrong is told, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.oracle import Figures, Outputs
from tests.faults.records import is_poison, line, score_of

SENT = {"f0": 120, "c1": 15}


def told(folder: Path, ids: list[str], *, extra: str = "") -> Figures:
    """Write scores and dead letters as a daemon does, in two segments, and judge them."""
    (folder / "out").mkdir()
    parted = [(id.partition(":")[0], int(id.partition(":")[2])) for id in ids]
    scores = [json.dumps({"id": f"{s}:{n}", "score": score_of(s, n)}) for s, n in parted if not is_poison(n)]
    dead = [json.dumps({"record": line(s, n).decode().rstrip()}) for s, n in parted if is_poison(n)]
    (folder / "out/scores-00000001.jsonl").write_text("".join(f"{score}\n" for score in scores[:50]))
    (folder / "out/scores.jsonl.open").write_text("".join(f"{score}\n" for score in [*scores[50:], *extra.split()]))
    (folder / "out/dead.jsonl").write_text("".join(f"{letter}\n" for letter in dead))
    return Outputs(folder).judge(SENT)


IDS = [f"{stream}:{number}" for stream, count in SENT.items() for number in range(count)]


def test_what_is_right_is_exact(tmp_path: Path) -> None:
    figures = told(tmp_path, IDS)
    assert figures.is_exact
    assert figures.records == len(IDS) == 135
    assert not figures.examples


@pytest.mark.parametrize("gone", ["f0:0", "f0:13", "f0:119", "c1:14"])
def test_one_that_is_lost(tmp_path: Path, gone: str) -> None:
    figures = told(tmp_path, [id for id in IDS if id != gone])
    assert (figures.lost, figures.is_exact, figures.examples) == (1, False, [f"lost {gone}"])


@pytest.mark.parametrize("twice", ["f0:0", "f0:13", "c1:14"])
def test_one_that_is_doubled(tmp_path: Path, twice: str) -> None:
    at = IDS.index(twice)
    figures = told(tmp_path, [*IDS[:at], twice, *IDS[at:]])
    assert (figures.lost, figures.doubled, figures.out_of_order) == (0, 1, 0)


def test_two_that_changed_places(tmp_path: Path) -> None:
    figures = told(tmp_path, [IDS[1], IDS[0], *IDS[2:]])
    assert (figures.lost, figures.doubled, figures.out_of_order) == (0, 0, 1)


def test_streams_may_mix(tmp_path: Path) -> None:
    assert told(tmp_path, sorted(IDS, key=lambda id: int(id.partition(":")[2]))).is_exact


def test_a_score_that_is_wrong_and_one_of_nobody(tmp_path: Path) -> None:
    extra = '{"id":"f0:120","score":1} {"id":"f9:1","score":1}'
    figures = told(tmp_path, IDS[:-1], extra=f'{extra} {{"id":"c1:14","score":0}}')
    assert (figures.lost, figures.unknown, figures.wrong) == (0, 2, 1)
