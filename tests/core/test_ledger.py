"""The ledger as a state machine: the identity holds and positions cover exactly the contiguous acked prefix."""

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streambatch.core.batches import Batch, Stamps
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.ledger import Ledger
from streambatch.core.outcomes import Outcome, Reject
from tests.chunks import chunk_of

PARTITIONS = [Partition("a", "1"), Partition("a", "2"), Partition("b", "1")]


class LedgerMachine(RuleBasedStateMachine):
    """Receives, batches and acks at random, beside a model that remembers every record."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        for name in ("a", "b"):
            self.ledger.add_source(name)
        self.ends: dict[Partition, int] = defaultdict(int)
        self.waiting: list[Chunk] = []
        self.flying: list[Batch] = []
        self.cut: dict[Partition, list[list[int | bool]]] = defaultdict(list)
        self.positions: dict[Partition, int] = {}
        self.sequence = 0

    @rule(partition=st.sampled_from(PARTITIONS), count=st.integers(1, 5))
    def receive(self, partition: Partition, count: int) -> None:
        chunk = chunk_of([b"x"] * count, partition=partition, base=self.ends[partition])
        self.ends[partition] = chunk.position
        self.waiting.append(chunk)
        self.ledger.received(chunk)

    @rule()
    def drop_newest(self) -> None:
        if self.waiting:
            self.ledger.dropped(self.waiting.pop(), "queue_full")

    @rule(take=st.integers(1, 4))
    def cut_batch(self, take: int) -> None:
        chunks, self.waiting = self.waiting[:take], self.waiting[take:]
        if not chunks:
            return
        if chunks[-1].count > 1:
            rest = chunks[-1]
            chunks[-1] = rest.split_off(1)
            self.waiting.insert(0, rest)
        count, size = sum(c.count for c in chunks), sum(c.size for c in chunks)
        batch = Batch(self.sequence, chunks, count, size, "size", Stamps(0, 0))
        self.sequence += 1
        self.flying.append(batch)
        self.ledger.opened(batch)
        for partition in {chunk.partition for chunk in chunks}:
            last = [chunk.position for chunk in chunks if chunk.partition == partition][-1]
            self.cut[partition].append([batch.sequence, last, False])

    @rule(pick=st.integers(0, 100), dead=st.booleans(), filtered=st.booleans())
    def ack(self, pick: int, dead: bool, filtered: bool) -> None:
        if not self.flying:
            return
        batch = self.flying.pop(pick % len(self.flying))
        scored: dict[str, int] = defaultdict(int)
        for chunk in batch.chunks:
            scored[chunk.partition.source] += chunk.count
        source = batch.chunks[0].partition.source
        rejects, gone = [], {}
        if dead:
            rejects = [Reject(0, batch.chunks[0].partition, 1, "decode", "invalid_json", "e", b"x")]
            scored[source] -= 1
        elif filtered:
            gone = {source: 1}
            scored[source] -= 1
        moved = self.ledger.acked(batch, Outcome(b"", scored, rejects, gone))
        self.positions.update(moved)
        for entries in self.cut.values():
            for entry in entries:
                entry[2] = entry[2] or entry[0] == batch.sequence

    @invariant()
    def positions_cover_the_contiguous_acked_prefix(self) -> None:
        for partition, entries in self.cut.items():
            prefix = None
            for _, position, is_acked in entries:
                if not is_acked:
                    break
                prefix = position
            assert self.positions.get(partition) == prefix

    @invariant()
    def the_identity_holds(self) -> None:
        for counts in (*self.ledger.sources.values(), self.ledger.totals()):
            assert counts.imbalance == 0
        unacked = sum(c.count for c in self.waiting) + sum(batch.count for batch in self.flying)
        assert self.ledger.totals().unacked == unacked


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase


def test_what_an_earlier_run_had_received_is_recovered_up_to_its_very_record() -> None:
    ledger, partition = Ledger(), PARTITIONS[0]
    ledger.add_source("a", is_resumable=True)
    ledger.resume(partition, 10)
    assert ledger.received(chunk_of([b"x", b"x"], partition=partition, base=4)) == 2
    assert ledger.received(chunk_of([b"x", b"x", b"x"], partition=partition, base=8)) == 1
    assert ledger.received(chunk_of([b"x"], partition=partition, base=14)) == 0
    counts = ledger.sources["a"]
    assert (counts.received, counts.recovered, counts.unacked, counts.imbalance) == (3, 3, 6, 0)
    assert ledger.reached() == {partition: (4, 16)}
    assert ledger.reached() == {}


def test_the_counts_after_an_ack_are_known_before_it() -> None:
    ledger = Ledger()
    ledger.add_source("a")
    chunk = chunk_of([b"x", b"y"], partition=PARTITIONS[0])
    ledger.received(chunk)
    batch = Batch(0, [chunk], 2, 4, "size", Stamps(0, 0))
    ledger.opened(batch)
    outcome = Outcome(b"", {"a": 1}, [], {"a": 1})
    after = ledger.after([(batch, outcome)])
    assert ledger.sources["a"].unacked == 2
    ledger.acked(batch, outcome)
    assert after == ledger.sources


def test_what_was_lost_with_a_damaged_spool_is_dropped() -> None:
    ledger = Ledger()
    ledger.add_source("a")
    ledger.received(chunk_of([b"x", b"y"], partition=PARTITIONS[0]))
    ledger.lost("a", 1)
    counts = ledger.sources["a"]
    assert (counts.dropped, counts.unacked, counts.imbalance) == ({"corrupt": 1}, 1, 0)
