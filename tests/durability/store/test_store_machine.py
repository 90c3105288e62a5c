"""The state store as a state machine: whatever is stored, killed, reset and pruned, it says what a plain dict says.

A kill is a copy of the file and its log as they lie on disk. A power loss that takes the end of the log leaves some
earlier state, whole.
"""

from __future__ import annotations

import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streambatch.core.chunks import Partition
from streambatch.core.report import Counts
from streambatch.durability.store.database import FILE_NAME
from streambatch.durability.store.store import StateStore
from streambatch.durability.stored import Checkpoint, IntendedBatch, JournalEntry, PartitionProgress, RecordRange
from tests.durability.stores import opened, run_start

LOG = f"{FILE_NAME}-wal"
SOURCES = ("in", "live")
NAMES = ("a.jsonl", "b/ü.jsonl", "c\udcff")
numbers = st.integers(0, 1 << 62)
notes = st.dictionaries(
    st.sampled_from(["inode", "digest", "path"]), st.one_of(numbers, st.text("a\udcffé", max_size=3))
)


class Model:
    """What a store should say."""

    def __init__(self) -> None:
        self.partitions: dict[tuple[str, str], tuple[Any, ...]] = {}
        self.outputs: dict[str, Any] = {}
        self.steps: bytes | None = None
        self.readings: set[str] = set()
        self.before: dict[str, int] = {}
        self.now: dict[str, int] = {}
        self.intents: dict[int, IntendedBatch] = {}
        self.next_batch = 0
        self.journals: list[list[tuple[float, list[JournalEntry]]]] = []

    def said(self) -> dict[str, Any]:
        return {
            "partitions": self.partitions,
            "outputs": self.outputs,
            "steps": self.steps,
            "readings": self.readings,
            "received": {name: self.before.get(name, 0) + self.now.get(name, 0) for name in {*self.before, *self.now}},
            "intents": [self.intents[number] for number in sorted(self.intents)],
            "next_batch": self.next_batch,
            "journals": [[entry for _, entries in rows for entry in entries] for rows in self.journals],
        }


def said(store: StateStore) -> dict[str, Any]:
    state = store.load()
    return {
        "partitions": {
            (source, name): (saved.position, saved.read_to, saved.notes, saved.records, saved.digest)
            for source, names in state.partitions.items()
            for name, saved in names.items()
        },
        "outputs": state.outputs,
        "steps": state.steps,
        "readings": set(state.readings),
        "received": {name: counts.received for name, counts in state.counts.items()},
        "intents": store.intended(),
        "next_batch": state.next_batch,
        "journals": [list(store.journal(run.run)) for run in store.runs()],
    }


class StoreMachine(RuleBasedStateMachine):
    """A store beside its model, and every state that was ever returned from."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = opened(self.folder / "0")
        self.generation = 0
        self.model = Model()
        self.ever = [self.model.said()]
        self.moment = 0.0

    @rule()
    def begin_run(self) -> None:
        self.store.begin_run(run_start(f"r{len(self.model.journals)}", self.moment, {"in": {"format": "csv"}}))
        self.model.journals.append([])
        self.model.readings.add("in")
        for source, received in self.model.now.items():
            self.model.before[source] = self.model.before.get(source, 0) + received
        self.model.now = dict.fromkeys({*self.model.before}, 0)

    @precondition(lambda self: self.model.journals)
    @rule(
        batches=st.lists(
            st.lists(st.tuples(st.sampled_from(SOURCES), st.sampled_from(NAMES), numbers, st.integers(0, 99))),
            max_size=4,
        ),
        moved=st.dictionaries(
            st.tuples(st.sampled_from(SOURCES), st.sampled_from(NAMES)), st.tuples(numbers, numbers, notes)
        ),
        forgotten=st.lists(st.tuples(st.sampled_from(SOURCES), st.sampled_from(NAMES)), max_size=1),
        output=st.none() | numbers,
        steps=st.none() | st.binary(max_size=9),
        received=st.none() | st.integers(0, 1000),
    )
    def commit(
        self, batches: Any, moved: Any, forgotten: Any, output: int | None, steps: bytes | None, received: int | None
    ) -> None:
        model, self.moment = self.model, self.moment + 1
        entries = [
            JournalEntry(
                model.next_batch + at, tuple(RecordRange(s, n, p, p + r, r) for s, n, p, r in ranges), at, 0, (at, 9)
            )
            for at, ranges in enumerate(batches)
        ]
        self.store.commit(
            Checkpoint(
                at=self.moment,
                counts={"in": Counts(received=received)} if received is not None else {},
                partitions={
                    Partition(*key): PartitionProgress(position=position, read_to=read_to, notes=noted)
                    for key, (position, read_to, noted) in moved.items()
                },
                forgotten=[Partition(*key) for key in forgotten],
                outputs={"scores": {"length": output}} if output is not None else {},
                steps=steps,
                journal=entries,
            )
        )
        records = {key: sum(r for b in batches for s, n, _, r in b if (s, n) == key) for key in moved}
        for key, (position, read_to, noted) in moved.items():
            known = model.partitions.get(key, (0, 0, {}, 0, None))[3]
            model.partitions[key] = (position, read_to, noted, known + records[key], None)
        for key in forgotten:
            model.partitions.pop(key, None)
        if output is not None:
            model.outputs["scores"] = {"length": output}
        model.steps = steps if steps is not None else model.steps
        if received is not None:
            model.now["in"] = received
        for entry in entries:
            model.intents = {number: each for number, each in model.intents.items() if number > entry.batch}
        model.next_batch += len(entries)
        model.journals[-1].append((self.moment, entries))

    @rule(ahead=st.integers(0, 3))
    def intend(self, ahead: int) -> None:
        intent = IntendedBatch(self.model.next_batch + ahead, (RecordRange("in", NAMES[2], 1, 2, ahead),))
        self.store.intend([intent])
        self.model.intents[intent.batch] = intent
        self.model.next_batch = intent.batch + 1

    @precondition(lambda self: self.model.readings)
    @rule(is_all=st.booleans())
    def reset(self, is_all: bool) -> None:
        model = self.model
        self.store.reset(None if is_all else "in")
        kept = set() if is_all else {"live"}
        model.readings &= kept
        model.partitions = {key: saved for key, saved in model.partitions.items() if key[0] in kept}
        model.before, model.now = {}, {}
        model.intents = {}
        if is_all:
            model.outputs, model.steps = {}, None

    @precondition(lambda self: self.model.journals)
    @rule(keep=st.integers(0, 5))
    def prune_journal(self, keep: int) -> None:
        self.store._prune_journal(self.moment - keep)
        rows = self.model.journals
        self.model.journals = [[row for row in one if row[0] >= self.moment - keep] for one in rows]

    @rule()
    def start_again(self) -> None:
        self.store.open()

    @rule(lost=st.sampled_from([0.0, 0.0, 0.3, 0.9, 1.0]))
    def kill(self, lost: float) -> None:
        """Go on with a copy of what lies on disk; with a part of the log lost, only look at it."""
        self.generation += 1
        old, new = self.store.folder, self.folder / str(self.generation)
        new.mkdir()
        for name in (FILE_NAME, LOG):
            if (old / name).exists():
                shutil.copy(old / name, new)
        if lost and (new / LOG).exists():
            log = (new / LOG).read_bytes()
            (new / LOG).write_bytes(log[: int(len(log) * (1 - lost))])
        store = opened(new)
        if lost:
            assert said(store) in self.ever
            store.close()
            return
        self.store.close()
        self.store = store

    @invariant()
    def it_says_what_was_stored(self) -> None:
        assert said(self.store) == self.model.said()
        self.ever.append(deepcopy(self.model.said()))

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)


TestStoreMachine = pytest.mark.slow(StoreMachine.TestCase)
StoreMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
