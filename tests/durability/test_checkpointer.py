"""The checkpointer: what it stores is true of one moment, is stored once, and names batches for good."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from streambatch.core.batches import Batch, Stamps
from streambatch.core.checkpoints import PartitionNotes
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.errors import StateOutage
from streambatch.core.intake import Intake
from streambatch.core.ledger import Ledger
from streambatch.core.outcomes import Outcome
from streambatch.core.parts import Reader
from streambatch.durability.checkpointer import Checkpointer
from streambatch.durability.store.store import StateStore
from tests.chunks import chunk_of
from tests.durability.stores import run_start
from tests.moved_clock import MovedClock

pytestmark = pytest.mark.anyio
FILE = Partition("in", "a.jsonl")


class Noting(Reader):
    """The reader of a source that can be resumed, and what it notes."""

    name, is_resumable = "in", True

    def __init__(self) -> None:
        self.new: dict[str, PartitionNotes | None] = {}

    async def run(self, intake: Intake) -> None:
        raise AssertionError("not to be run")

    def notes(self) -> Mapping[str, PartitionNotes | None]:
        new, self.new = self.new, {}
        return new


class Run:
    """A checkpointer on a real store, with the ledger that goes with it."""

    def __init__(self, folder: Path, run: str = "r1") -> None:
        self.store = StateStore(folder)
        self.store.open()
        self.state = self.store.load()
        self.store.begin_run(run_start(run))
        self.ledger, self.source = Ledger(), Noting()
        self.ledger.add_source("in", is_resumable=True)
        clock = MovedClock()
        self.checkpointer = Checkpointer(
            self.store, self.state, self.ledger, [self.source], clock=clock, dump=lambda states: bytes(states)
        )
        self.checkpointer.start()
        self.sequence = 0

    def score(self, chunk: Chunk, *, id: str | None = None, states: Any = None) -> tuple[Batch, Outcome]:
        self.ledger.received(chunk)
        batch = Batch(self.sequence, [chunk], chunk.count, chunk.size, "size", Stamps(0, 0), id)
        outcome = Outcome(b"{}\n" * chunk.count, {"in": chunk.count}, [], {}, states=states)
        self.sequence += 1
        self.ledger.opened(batch)
        self.checkpointer.written(batch, outcome, {"segment": 1, "length": 10 * self.sequence})
        batch.release()
        return batch, outcome

    async def commit(self, *finished: tuple[Batch, Outcome], length: int = 0) -> None:
        point = self.checkpointer.point()
        await self.checkpointer.commit(list(finished), {"sink": {"segment": 1, "length": length}}, point)
        for batch, outcome in finished:
            self.ledger.acked(batch, outcome)

    def close(self) -> None:
        self.checkpointer.close()
        self.store.close()


async def test_a_checkpoint_covers_the_batches_it_acks_and_no_other(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.source.new = {"a.jsonl": {"inode": 7}}
    first = run.score(chunk_of([b"one", b"two"], partition=FILE), states=[1, 2])
    run.score(chunk_of([b"three"], partition=FILE, base=8), states=[3])
    await run.commit(first, length=10)
    state = run.store.load()
    saved = state.partitions["in"]["a.jsonl"]
    assert (saved.position, saved.read_to, saved.notes, saved.records) == (8, 14, {"inode": 7}, 2)
    assert saved.digest is None, "more was hashed than is acked"
    assert state.outputs == {"sink": {"segment": 1, "length": 10}}
    assert state.steps == bytes([1, 2])
    counts = state.counts["in"]
    assert (counts.received, counts.scored, counts.unacked) == (3, 2, 1)
    (entry,) = run.store.journal("r1")
    assert (entry.batch, entry.scored, entry.place, entry.ranges[0].end) == (state.next_batch - 1, 2, (1, 10), 8)
    run.close()


async def test_the_digest_is_of_all_that_is_acked(tmp_path: Path) -> None:
    run = Run(tmp_path)
    finished = [run.score(chunk_of([b"one"], partition=FILE)), run.score(chunk_of([b"two"], partition=FILE, base=4))]
    await run.commit(*finished)
    assert run.store.load().partitions["in"]["a.jsonl"].digest == sha256(b"one\ntwo\n").hexdigest()
    run.close()


async def test_what_could_not_be_stored_is_stored_later_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    first = run.score(chunk_of([b"one"], partition=FILE))
    store, run.source.new = run.store.commit, {"a.jsonl": {"inode": 7}}

    def full(checkpoint: object) -> None:
        raise StateOutage(tmp_path, "no room")

    monkeypatch.setattr(run.store, "commit", full)
    with pytest.raises(StateOutage):
        await run.commit(first)
    assert run.store.load().partitions == {}
    monkeypatch.setattr(run.store, "commit", store)
    second = run.score(chunk_of([b"two"], partition=FILE, base=4))
    await run.commit(first, second)
    saved = run.store.load().partitions["in"]["a.jsonl"]
    assert (saved.position, saved.records, saved.notes) == (8, 2, {"inode": 7})
    assert [entry.scored for entry in run.store.journal("r1")] == [1, 1]
    await run.commit()
    assert run.store.runs()[0].checkpoints == 1, "there was nothing new to store"
    run.close()


async def test_a_partition_that_is_over_goes_once_all_of_it_is_acked(tmp_path: Path) -> None:
    run = Run(tmp_path)
    first = run.score(chunk_of([b"one"], partition=FILE))
    run.source.new = {"a.jsonl": None}
    await run.commit()
    assert list(run.store.load().partitions["in"]) == ["a.jsonl"]
    await run.commit(first)
    assert run.store.load().partitions == {}
    (partition,) = run.store.manifest("r1")["sources"]["in"]["partitions"]
    assert (partition["last"], partition["records"]) == (4, 1)
    run.close()


async def test_a_partition_that_comes_again_after_it_was_over_is_hashed_anew(tmp_path: Path) -> None:
    """The digest of each one that ever was over was kept until the run ended."""
    run = Run(tmp_path)
    run.source.new = {"a.jsonl": None}
    await run.commit(run.score(chunk_of([b"one"], partition=FILE)))
    await run.commit(run.score(chunk_of([b"new"], partition=FILE)))
    assert run.store.load().partitions["in"]["a.jsonl"].digest == sha256(b"new\n").hexdigest()
    run.close()


async def test_numbers_go_on_over_runs_and_a_batch_cut_again_keeps_its_own(tmp_path: Path) -> None:
    run = Run(tmp_path)
    await run.commit(run.score(chunk_of([b"one"], partition=FILE)))
    chunk = chunk_of([b"two"], partition=FILE, base=4)
    lost = Batch(1, [chunk], 1, 4, "size", Stamps(0, 0))
    await run.checkpointer.intend([lost])
    sent_as = run.checkpointer.id_of(lost)
    run.close()
    again = Run(tmp_path, "r2")
    (intent,) = again.store.intended()
    assert (intent.ranges[0].start, intent.ranges[0].end) == (4, 8)
    finished = again.score(chunk_of([b"two"], partition=FILE, base=4), id=sent_as)
    await again.commit(finished, again.score(chunk_of([b"new"], partition=FILE, base=8)))
    numbers = [entry.batch for run in ("r1", "r2") for entry in again.store.journal(run)]
    assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]
    assert sent_as.endswith(f"-{numbers[1]}")
    assert again.store.intended() == []
    again.close()
