"""The last dead letters and errors are remembered, and no more than those."""

from __future__ import annotations

import json
import os
from typing import Any

import msgspec

from streambatch.core.batches import Batch, Stamps
from streambatch.core.chunks import Partition
from streambatch.core.events import Observer
from streambatch.core.outcomes import Outcome, Reject
from streambatch.web.recent import KEPT, TEXT_MAX, RecentProblems


class StoppedClock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


def reject(position: int, error: str = "[record] features: expected 10 numbers, found 9") -> Reject:
    return Reject(0, Partition("rides_in", "a.jsonl"), position, "validate", "wrong_shape", error, b"SECRET RECORD")


def died(recent: Observer, *rejects: Reject) -> None:
    batch = Batch(0, (), 0, 0, "size", Stamps(0.0, 0.0))
    recent.batch_written(batch, Outcome(b"", {}, rejects, {}))


def test_a_dead_letter_says_where_it_died_of_what_but_not_what_it_held() -> None:
    recent = RecentProblems(StoppedClock())
    died(recent)
    died(recent, reject(17))
    assert recent.dead_letters == [
        {
            "at": "2023-11-14T22:13:20.000+00:00", "stage": "validate", "reason": "wrong_shape", "source": "rides_in",
            "partition": "a.jsonl", "position": 17, "error": "[record] features: expected 10 numbers, found 9",
        }
    ]  # fmt: skip
    assert "SECRET" not in json.dumps(recent.dead_letters)


def test_a_file_of_any_name_can_be_told_of() -> None:
    recent, path = RecentProblems(StoppedClock()), os.fsdecode(b"a\xff.jsonl")
    died(recent, Reject(0, Partition("rides_in", path), 17, "validate", "wrong_shape", f"{path}: 9 numbers", b""))
    recent.source_failed("rides_in", OSError(f"{path}: permission denied"))
    told = msgspec.json.encode([recent.dead_letters, recent.errors]).decode()
    assert told.count(r"a\\xff.jsonl") == 3


def test_the_last_ones_are_kept_newest_first_and_their_texts_cut() -> None:
    recent = RecentProblems(StoppedClock())
    died(recent, *map(reject, range(100)))
    died(recent, reject(100, "x" * 10_000))
    assert [dead["position"] for dead in recent.dead_letters] == list(range(100, 100 - KEPT, -1))
    assert len(recent.dead_letters[0]["error"]) == TEXT_MAX


def test_an_error_that_repeats_is_one_that_counts_until_it_is_over() -> None:
    clock = StoppedClock()
    recent = RecentProblems(clock)
    for _ in range(50):
        recent.sink_failed("scores", OSError("connection refused"))
        clock.now += 1
    recent.sink_recovered("scores")
    recent.sink_failed("scores", OSError("connection refused"))
    again, first = recent.errors
    assert (first["where"], first["error"], first["times"]) == ("sink scores", "connection refused", 50)
    assert first["last_at"] == "2023-11-14T22:14:09.000+00:00"
    assert first["over_at"] == "2023-11-14T22:14:10.000+00:00"
    assert (again["times"], again["over_at"]) == (1, None)


def test_sources_and_checkpoints_fail_too_and_errors_are_bounded() -> None:
    recent = RecentProblems(StoppedClock())
    recent.source_failed("rides_in", OSError("no such file"))
    recent.synced(0.1, ok=False)
    assert [error["where"] for error in recent.errors] == ["checkpoint", "source rides_in"]
    recent.source_recovered("rides_in")
    recent.synced(0.1, ok=True)
    assert all(error["over_at"] for error in recent.errors)
    for number in range(100):
        recent.sink_failed("scores", OSError(f"error {number}"))
    assert len(recent.errors) == KEPT


def test_users_and_passwords_of_addresses_are_left_out() -> None:
    recent = RecentProblems(StoppedClock())
    recent.sink_failed("scores", OSError("http://user:pass@127.0.0.1/scores: refused"))
    assert recent.errors[0]["error"] == "http://***@127.0.0.1/scores: refused"


def test_what_is_returned_is_a_copy() -> None:
    recent = RecentProblems(StoppedClock())
    recent.sink_failed("scores", OSError("refused"))
    shown: Any = recent.errors[0]
    shown["error"] = "changed"
    assert recent.errors[0]["error"] == "refused"
