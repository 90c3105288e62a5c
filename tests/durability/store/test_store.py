"""The state store as its users have it: what is stored comes back, in this process and in the next."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streambatch.core.checkpoints import SavedPartition
from streambatch.core.chunks import Partition
from streambatch.core.errors import ChangedReadingError, ConfigError, StateError
from streambatch.core.report import Counts
from streambatch.durability.manifest import code_revision
from streambatch.durability.options import RunsOptions
from streambatch.durability.store.store import StateStore
from streambatch.durability.stored import IntendedBatch, JournalEntry, PartitionProgress, RecordRange
from streambatch.storage.folder import StateFolder
from streambatch.version import __version__
from tests.durability.stores import READINGS, checkpoint, opened, run_start, seen

DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    with opened(tmp_path) as store:
        yield store


def again(store: StateStore) -> StateStore:
    store.open()
    return store


def test_a_new_store_is_empty(store: StateStore) -> None:
    state = store.load()
    assert (state.partitions, state.outputs, state.steps, state.counts) == ({}, {}, None, {})
    assert (state.runs, state.next_batch, state.checkpointed_at) == (0, 0, None)
    assert store.runs() == []
    assert re.fullmatch("[0-9a-f]{16}", state.state_id)
    assert again(store).load() == state


def test_only_the_state_is_left_when_it_is_closed(store: StateStore, tmp_path: Path) -> None:
    store.begin_run(run_start())
    store.close()
    assert os.listdir(tmp_path) == ["state.sqlite3"]


def test_a_checkpoint_comes_back(store: StateStore) -> None:
    store.begin_run(run_start())
    store.commit(checkpoint(101.5, [0, 1, 2], steps=b"\x00memory", length=777))
    state = again(store).load()
    saved = state.partitions["in"]["a.jsonl"]
    assert isinstance(saved, SavedPartition)
    assert (saved.position, saved.read_to, saved.notes) == (300, 350, {"inode": 7, "path": "a.jsonl"})
    assert (saved.records, saved.digest) == (30, "e" * 64)
    assert state.outputs == {"scores": {"segment": 1, "length": 777}}
    assert state.steps == b"\x00memory"
    assert state.counts == {"in": Counts(received=35, scored=27, dead_lettered=3, unacked=5)}
    assert (state.runs, state.next_batch, state.checkpointed_at) == (1, 3, 101.5)
    assert state.readings == READINGS


def test_what_a_checkpoint_does_not_name_stays(store: StateStore) -> None:
    store.begin_run(run_start())
    store.commit(checkpoint(1, [0], "a.jsonl", steps=b"1"))
    store.commit(checkpoint(2, [1, 2], "b.jsonl", outputs={"dead_letter": {"absent": True}}))
    store.commit(checkpoint(3, [], counts={}, outputs={}))
    state = store.load()
    assert {name: saved.records for name, saved in state.partitions["in"].items()} == {"a.jsonl": 10, "b.jsonl": 20}
    assert state.outputs == {"scores": {"segment": 1, "length": 100}, "dead_letter": {"absent": True}}
    assert state.steps == b"1"
    assert state.checkpointed_at == 3


def test_the_journal_has_every_batch_in_order(store: StateStore) -> None:
    store.begin_run(run_start())
    mixed = (
        JournalEntry(70, (RecordRange("in", "a", 5, 900, 3), RecordRange("live", "r1-2", 0, 17, 1)), 4, 0),
        JournalEntry(71, (RecordRange("in", "a", 900, 900, 0), RecordRange("live", "r1-2", 40, 50, 2)), 0, 2, (2, 0)),
        JournalEntry(72, (), 0, 0, (3, 5)),
    )
    store.commit(checkpoint(1, range(0, 70)))
    store.commit(checkpoint(2, [], journal=mixed))
    for at in range(100):
        store.commit(checkpoint(3 + at, [73 + at]))
    entries = list(again(store).journal("r1"))
    assert [entry.batch for entry in entries] == list(range(173))
    assert tuple(entries[70:73]) == mixed
    assert entries[3] == JournalEntry(3, (RecordRange("in", "a.jsonl", 300, 400, 10),), 9, 1, (1, 160))


def test_file_names_may_hold_any_bytes(store: StateStore) -> None:
    name = os.fsdecode(b"in/\xff\xc3\xa9 \xe2\x82\xac.jsonl")
    store.begin_run(run_start())
    store.commit(checkpoint(1, [0], name))
    store.commit(checkpoint(2, [1], name))
    assert again(store).load().partitions["in"][name].notes == {"inode": 7, "path": name}
    assert [entry.ranges[0].partition for entry in store.journal("r1")] == [name, name]
    assert store.manifest("r1")["sources"]["in"]["partitions"][0]["partition"] == name
    store.commit(checkpoint(3, [], forgotten=[Partition("in", name)]))
    assert store.load().partitions == {}


def test_counts_add_up_over_runs(store: StateStore) -> None:
    first = Counts(received=10, scored=6, dropped={"filtered": 1}, unacked=3, refused={"full": 2})
    second = Counts(received=1, recovered=3, scored=2, dropped={"filtered": 1, "queue_full": 1}, refused={"full": 1})
    store.begin_run(run_start("r1"))
    store.commit(checkpoint(1, [], counts={"in": first}))
    store.begin_run(run_start("r2"))
    assert store.load().counts["in"].unacked == 0
    store.commit(checkpoint(2, [], counts={"in": second}))
    store.commit(checkpoint(3, [], counts={"in": second, "live": Counts(received=4, unacked=4)}))
    assert store.load().counts == {
        "in": Counts(received=11, recovered=3, scored=8, dropped={"filtered": 2, "queue_full": 1}, refused={"full": 3}),
        "live": Counts(received=4, unacked=4),
    }


def test_batches_are_numbered_on_over_runs(store: StateStore) -> None:
    store.begin_run(run_start("r1"))
    store.commit(checkpoint(1, [0, 1]))
    assert store.begin_run(run_start("r2")) == 2
    assert store.load().next_batch == 2
    store.intend([IntendedBatch(5, (RecordRange("in", "a", 0, 1, 1),))])
    assert store.load().next_batch == 6
    store.reset()
    assert store.load().next_batch == 6


def test_a_partition_that_is_over_is_forgotten_but_not_by_its_run(store: StateStore) -> None:
    store.begin_run(run_start())
    store.commit(checkpoint(1, [0], "a"))
    store.commit(checkpoint(2, [1], "b", forgotten=[Partition("in", "a"), Partition("in", "b")]))
    assert store.load().partitions == {}
    assert [one["partition"] for one in store.manifest("r1")["sources"]["in"]["partitions"]] == ["a", "b"]


def test_intents_stay_until_their_batches_are_acked(store: StateStore) -> None:
    store.begin_run(run_start())
    intents = [IntendedBatch(n, (RecordRange("in", "a.jsonl", 100 * n, 100 * n + 100, 10),)) for n in range(12)]
    store.intend(intents)
    store.intend(intents[:1])
    assert again(store).intended() == intents
    store.commit(checkpoint(1, range(0, 3)))
    assert again(store).intended() == intents[3:]


def test_the_manifest_says_what_a_run_was(store: StateStore) -> None:
    store.begin_run(run_start("r1", 0.0))
    store.commit(checkpoint(1, [0, 1]))
    counts = Counts(received=20, scored=18, dead_lettered=2)
    store.end_run("r1", "input_ended", None, 1.5, {"in": counts}, {"run": "r1", "seconds": 1.5})
    store.begin_run(run_start("r2", 5.0))
    store.commit(checkpoint(6, [2, 3], length=999))
    store.commit(checkpoint(7, [4], length=1200))
    store.end_run("r2", "failed", "sink scores: gone", 8, {})
    assert again(store).manifest("r1") == {
        "run": "r1",
        "pipeline": "rides",
        "started": "1970-01-01T00:00:00.000Z",
        "ended": "1970-01-01T00:00:01.500Z",
        "why": "input_ended",
        "error": None,
        "streambatch": {"version": __version__, "revision": code_revision()},
        **{name: store.manifest("r1")[name] for name in ("python", "numpy")},
        "config": {"name": "rides", "source": {"in": {"password": "***"}}},
        "config_digest": "c" * 64,
        "model": {"path": "model.npz", "format": "linear", "sha256": "d" * 64, "parameters": {"features": 10}},
        "changes": [],
        "changes_forgotten": 0,
        "sources": {
            "in": {
                "counts": counts.as_records(),
                "partitions": [
                    {
                        "partition": "a.jsonl",
                        "identity": {"inode": 7, "path": "a.jsonl"},
                        "first": 0,
                        "last": 200,
                        "records": 20,
                        "sha256": "e" * 64,
                    }
                ],
            }
        },
        "sinks": {
            "scores": {
                "path": "out/scores.jsonl",
                "format": "jsonl",
                "from": None,
                "to": {"segment": 1, "length": 200},
            }
        },
        "counts": counts.as_records(),
        "checkpoints": 1,
        "last_checkpoint": "1970-01-01T00:00:01.000Z",
        "report": {"run": "r1", "seconds": 1.5},
    }
    later = store.manifest("r2")
    assert (later["why"], later["error"]) == ("failed", "sink scores: gone")
    (read,) = later["sources"]["in"]["partitions"]
    assert (read["first"], read["last"], read["records"]) == (200, 500, 30)
    sink = later["sinks"]["scores"]
    assert (sink["from"], sink["to"]) == ({"segment": 1, "length": 200}, {"segment": 1, "length": 1200})


def test_a_run_goes_on_until_it_ends_or_nobody_holds_the_state(store: StateStore, tmp_path: Path) -> None:
    with StateFolder(tmp_path):
        store.begin_run(run_start("r1"))
        store.commit(checkpoint(150, [0]))
        assert [(run.run, run.why, run.ended) for run in store.runs()] == [("r1", "running", None)]
        store.begin_run(run_start("r2"))
        assert [run.why for run in store.runs()] == ["interrupted", "running"]
        store.begin_run(run_start("r3"))
        store.end_run("r3", "stopped", None, 200, {})
        store.begin_run(run_start("r4", 300))
    runs = store.runs()
    assert [(run.why, run.ended) for run in runs] == [
        ("interrupted", 150), ("interrupted", 100), ("stopped", 200), ("interrupted", 300)
    ]  # fmt: skip
    assert runs[0].counts == Counts(received=15, scored=9, dead_lettered=1, unacked=5)
    assert store.manifest("r1")["why"] == "interrupted"


def test_only_the_run_begun_last_can_end(store: StateStore) -> None:
    store.begin_run(run_start("r1"))
    store.begin_run(run_start("r2"))
    with pytest.raises(StateError, match="run r1 is not the one that was begun last"):
        store.end_run("r1", "stopped", None, 1, {})


def test_a_run_that_is_not_kept(store: StateStore) -> None:
    with pytest.raises(StateError, match="no run r9; `streambatch runs list` names"):
        store.manifest("r9")
    with pytest.raises(StateError, match="no run r9"):
        list(store.journal("r9"))


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"format": "csv"}, r"source\.in\.format: found 'csv', but positions were counted with 'jsonl'"),
        ({"compression": "none"}, r"source\.in\.compression: found 'none', .* with 'auto'"),
    ],
)
def test_options_that_positions_depend_on_may_not_change(
    store: StateStore, changed: dict[str, Any], found: str
) -> None:
    store.check_reading("in", READINGS["in"])
    store.begin_run(run_start(readings={"in": {**READINGS["in"], "columns": ("a", "b")}}))
    store.check_reading("in", {**READINGS["in"], **changed})  # nothing was read yet
    store.commit(checkpoint(1, [0]))
    again(store).check_reading("in", {**READINGS["in"], "columns": ("a", "b")})
    store.check_reading("in", {**READINGS["in"], "new_option": 1})
    with pytest.raises(ChangedReadingError, match=found) as raised:
        store.check_reading("in", {**READINGS["in"], **changed})
    assert "streambatch state reset --source in" in str(raised.value)
    store.reset("in")
    store.check_reading("in", {**READINGS["in"], **changed})


def test_reset_of_one_source_leaves_the_others(store: StateStore) -> None:
    store.begin_run(run_start(readings={**READINGS, "other": {"format": "csv"}}))
    other = {Partition("other", "b"): PartitionProgress(position=1, read_to=2, notes={})}
    counts = {"in": Counts(received=1, unacked=1), "other": Counts(received=2, unacked=2)}
    store.commit(checkpoint(1, [0]))
    store.commit(checkpoint(2, [], partitions=other, counts=counts, outputs={}))
    store.intend(
        [
            IntendedBatch(7, (RecordRange("in", "a.jsonl", 0, 1, 1),)),
            IntendedBatch(8, (RecordRange("other", "b", 0, 1, 1),)),
        ]
    )
    with pytest.raises(StateError, match="found no source none; those with state: in, other"):
        store.reset("none")
    store.reset("in")
    state = again(store).load()
    assert list(state.partitions) == list(state.readings) == list(state.counts) == ["other"]
    assert state.outputs == {"scores": {"segment": 1, "length": 100}}
    assert [intent.batch for intent in store.intended()] == [8]


def test_reset_of_everything_keeps_the_runs(store: StateStore) -> None:
    store.begin_run(run_start())
    store.commit(checkpoint(1, [0, 1], steps=b"1"))
    store.reset()
    state = again(store).load()
    assert (state.readings, state.partitions, state.outputs, state.steps) == ({}, {}, {}, None)
    assert (state.counts, state.checkpointed_at, state.next_batch) == ({}, None, 2)
    assert len(list(store.journal("r1"))) == 2
    assert store.manifest("r1")["counts"]["scored"] == 18


def test_what_is_old_is_pruned(store: StateStore) -> None:
    for number, started in enumerate((0.0, 10 * DAY, 20 * DAY)):
        store.begin_run(run_start(f"r{number}", started))
        for day in range(3):
            store.commit(checkpoint(started + day * DAY, [3 * number + day], f"{number}.jsonl"))
    assert store.prune(9.5 * DAY, 20 * DAY) == 1
    assert [run.run for run in again(store).runs()] == ["r1", "r2"]
    assert [entry.batch for entry in store.journal("r1")] == [4, 5]
    assert store.manifest("r1")["sources"]["in"]["partitions"][0]["first"] == 300
    assert len(store.load().partitions["in"]) == 3
    assert store.prune(1, 1000 * DAY) == 1
    assert [run.run for run in store.runs()] == ["r2"]
    assert list(store.journal("r2")) == []
    store.commit(checkpoint(1000 * DAY, [9]))
    assert [entry.batch for entry in again(store).journal("r2")] == [9]


def test_a_long_journal_is_pruned_whole(store: StateStore) -> None:
    store.begin_run(run_start())
    for at in range(1200):
        store.commit(checkpoint(float(at), [at]))
    store.prune(99.0, 1200.0)
    assert [entry.batch for entry in store.journal("r1")] == list(range(1101, 1200))


def test_a_reader_sees_one_moment_while_another_writes(store: StateStore, tmp_path: Path) -> None:
    store.begin_run(run_start())
    store.commit(checkpoint(1, [0]))
    before = seen(store)
    with StateStore.read(tmp_path) as reader:
        store.commit(checkpoint(2, [1], length=5))
        assert seen(reader) == before
        store.prune(0.5, 2)
        store.commit(checkpoint(3, [2]))
        assert seen(reader) == before
    with StateStore.read(tmp_path) as reader:
        assert seen(reader) == seen(store)
    assert store.load().next_batch == 3


def test_a_state_at_rest_is_read_and_left_as_it_is(store: StateStore, tmp_path: Path) -> None:
    store.begin_run(run_start())
    store.commit(checkpoint(1, [0]))
    expected = seen(store)
    store.close()
    before = (tmp_path / "state.sqlite3").read_bytes()
    with StateStore.read(tmp_path) as reader:
        assert seen(reader) == expected
    assert os.listdir(tmp_path) == ["state.sqlite3"]
    assert (tmp_path / "state.sqlite3").read_bytes() == before


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"state\.sqlite3: there is none yet; `streambatch run` makes it"):
        StateStore.read(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_not_open(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="not open"):
        StateStore(tmp_path).load()


def test_how_long_runs_are_kept() -> None:
    assert RunsOptions().keep == 30 * DAY
    assert RunsOptions(keep="2d").keep == 2 * DAY  # type: ignore[arg-type]  # as a config has it
    with pytest.raises(ConfigError):
        RunsOptions(keep=0)
