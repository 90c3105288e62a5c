"""The checkpoint store: positions, counts, outputs' marks, step state, the journal and the runs, in one SQLite file.

A checkpoint is one transaction, durable when `commit` returns; a process killed at any moment leaves the file as the
last one made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec

from streambatch.core.chunks import Partition
from streambatch.core.clock import SystemClock
from streambatch.core.errors import StateError
from streambatch.core.report import Counts, Ended
from streambatch.durability.journal import pack_intent, pack_journal, stored_name, unpack_intent
from streambatch.durability.manifest import RunDetail, RunProgress, as_json, detail_of, from_json
from streambatch.durability.store.database import Transaction, open_database, read_database
from streambatch.durability.store.reader import StateReader, counts_of_all_runs, journal_digest, seal
from streambatch.durability.store.schema import find_row, replace_row
from streambatch.durability.stored import Checkpoint, IntendedBatch, JournalEntry, PartitionProgress, RunEnd, RunStart

_PRUNED_AT_ONCE = 1000


class StateStore(StateReader):
    """The state of one pipeline, kept by the process that holds the state folder.

    Methods block on the disk and may be called from any thread; they take turns. Each is one transaction: when it
    raises, nothing of it was stored. StateOutage is for what may pass, such as a full disk: try the same call again.
    """

    def __init__(self, folder: Path, wall: Callable[[], float] = SystemClock.wall) -> None:
        super().__init__(folder)
        self._wall = wall

    @staticmethod
    def read(folder: Path) -> StateReader:
        """Open a state as it is at this moment, to read it while others write. Raises StateError if there is none."""
        return StateReader(folder, read_database(folder))

    def open(self) -> None:
        """Open the file, or make it; check all that is needed to resume.

        Raises DamagedStateError for a file that is damaged, once it was put aside; StateError for one of another
        program or of a newer version, which stays where it is.
        """
        self.close()
        self._database = open_database(self.folder, self._wall)

    def begin_run(self, start: RunStart) -> int:
        """Store what a run is made of. Returns its number; the one before it that has no end was interrupted."""
        with self._writing() as transaction:
            head = transaction.head
            head.runs += 1
            steps = transaction.connection.execute("SELECT states FROM steps").fetchone()
            transaction.put("runs", head.runs, start.run, as_json(start), steps[0] if steps else None)
            outputs = transaction.connection.execute("SELECT * FROM outputs").fetchall()
            marks = {name: from_json(mark) for name, mark in outputs}
            progress = RunProgress(
                head.runs, 0, start.started, head.journal + 1, head.journal, 0, seal(0),
                as_json(RunDetail(outputs_from=marks, outputs_to=marks)), None,
            )  # fmt: skip
            _put_progress(transaction, progress)
            for source, reading in start.readings.items():
                transaction.put("sources", source, as_json(reading))
            for source, *counts in transaction.connection.execute("SELECT * FROM counts").fetchall():
                total = counts_of_all_runs(*counts)
                # `unacked` is of one run, and not added up.
                total.unacked = 0
                transaction.put("counts", source, as_json(total), as_json(Counts()))
            return head.runs

    def commit(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint of the run begun last."""
        with self._writing() as transaction:
            progress = _current(transaction)
            progress.checkpoints, progress.at = progress.checkpoints + 1, float(checkpoint.at)
            transaction.head.at = float(checkpoint.at)
            read = _read_ranges(checkpoint.journal)
            for partition, moved in checkpoint.partitions.items():
                first, records = read.get(partition, (moved.position, 0))
                _put_partition(transaction, partition, moved, records)
                if partition in read:
                    _put_read(transaction, progress, partition, moved, first, records)
            for partition in checkpoint.forgotten:
                transaction.drop("partitions", partition.source, stored_name(partition.name))
            if checkpoint.steps is not None:
                transaction.put("steps", 1, checkpoint.steps)
            _put_journal(transaction, progress, checkpoint)
            _put_counts(transaction, checkpoint.counts)
            for name, mark in checkpoint.outputs.items():
                transaction.put("outputs", name, as_json(mark))
            detail = detail_of(progress)
            detail.counts.update(checkpoint.counts)
            detail.outputs_to.update(checkpoint.outputs)
            detail.add_changes(checkpoint.changes)
            for name, mark in checkpoint.outputs.items() if not checkpoint.journal else ():
                detail.outputs_from.setdefault(name, mark)  # as it was found, before its first change
            progress.detail = as_json(detail)
            _put_progress(transaction, progress)

    def end_run(
        self,
        run: str,
        ended: Ended,
        error: str | None,
        at: float,
        counts: Mapping[str, Counts],
        report: Mapping[str, Any] | None = None,
    ) -> None:
        """Store how a run ended, with its last counts. at: wall seconds."""
        with self._writing() as transaction:
            progress = _current(transaction)
            begun_last = find_row(transaction.connection, "runs", (progress.number,))
            if begun_last is None or begun_last[1] != run:
                raise StateError(self.path, f"run {run} is not the one that was begun last")
            detail = detail_of(progress)
            detail.counts.update(counts)
            progress.detail = as_json(detail)
            progress.ended = as_json(RunEnd(ended=ended, at=at, error=error, report=report))
            _put_counts(transaction, counts)
            _put_progress(transaction, progress)

    def intend(self, intents: Sequence[IntendedBatch]) -> None:
        """Store batches that are about to be sent; a commit with the journal entry of one removes it and all before."""
        with self._writing() as transaction:
            for intent in intents:
                transaction.put("intents", intent.batch, pack_intent(intent))
                # Stored with the intent: after a crash, no other batch may get this number.
                transaction.head.next_batch = max(transaction.head.next_batch, intent.batch + 1)

    def reset(self, source: str | None = None) -> None:
        """Forget how far a source, or everything, has come, so that it is read from the beginning.

        Runs, their journals and the numbering of batches stay. Raises StateError for a source that has no state.
        """
        with self._writing() as transaction:
            if source is None:
                for table in ("sources", "partitions", "outputs", "steps", "counts", "intents"):
                    transaction.clear(table)
                transaction.head.at = None
                return
            query = "SELECT name FROM sources UNION SELECT source FROM partitions"
            known = {name for (name,) in transaction.connection.execute(query)}
            if source not in known:
                names = ", ".join(sorted(known)) or "none"
                raise StateError(self.path, f"found no source {source}; those with state: {names}")
            transaction.drop("sources", source)
            transaction.drop("counts", source)
            transaction.clear("partitions", "source = ?", source)
            for number, packed in transaction.connection.execute("SELECT * FROM intents").fetchall():
                if any(r.source == source for r in unpack_intent(number, packed).ranges):
                    transaction.drop("intents", number)

    def prune(self, keep_seconds: float, now: float) -> int:
        """Forget journal rows and runs older than this, the last run excepted. Returns how many runs went.

        now: wall seconds.
        """
        cutoff = now - keep_seconds
        # In short transactions, so that a checkpoint needn't wait long.
        while self._prune_journal(cutoff):
            pass
        with self._writing() as transaction:
            old = transaction.connection.execute(
                "SELECT number FROM progress WHERE at < ? AND number < ?", (cutoff, transaction.head.runs)
            ).fetchall()
            for (number,) in old:
                transaction.drop("runs", number)
                transaction.drop("progress", number)
                # Past `drop`: reads have no seal in the store's, but one in the progress row that goes with them.
                transaction.connection.execute("DELETE FROM reads WHERE number = ?", (number,))
            return len(old)

    def _prune_journal(self, cutoff: float) -> bool:
        """Forget the oldest journal rows. Returns whether there may be more."""
        with self._writing() as transaction:
            connection = transaction.connection
            rows = connection.execute("SELECT id, at FROM journal ORDER BY id LIMIT ?", (_PRUNED_AT_ONCE,)).fetchall()
            young = next((at for at, (_, stored) in enumerate(rows) if stored >= cutoff), len(rows))
            if not young:
                return False
            last = rows[young - 1][0]
            connection.execute("DELETE FROM journal WHERE id <= ?", (last,))
            for row in connection.execute("SELECT * FROM progress WHERE journal_from <= ?", (last,)).fetchall():
                progress = RunProgress(*row)
                if progress.journal_from <= progress.journal_to:
                    progress.journal_from = min(last, progress.journal_to) + 1
                    _put_progress(transaction, progress)
            return young == _PRUNED_AT_ONCE

    def _writing(self) -> AbstractContextManager[Transaction]:
        return self._opened().writing()


def _current(transaction: Transaction) -> RunProgress:
    row = find_row(transaction.connection, "progress", (transaction.head.runs,))
    if row is None:
        raise RuntimeError("a run must have begun")
    return RunProgress(*row)


def _put_progress(transaction: Transaction, progress: RunProgress) -> None:
    transaction.put("progress", *msgspec.structs.astuple(progress))


def _put_partition(transaction: Transaction, partition: Partition, moved: PartitionProgress, records: int) -> None:
    key = (partition.source, stored_name(partition.name))
    before = find_row(transaction.connection, "partitions", key)
    total = records + (before[4] if before else 0)
    transaction.put("partitions", *key, moved.position, moved.read_to, total, moved.digest, as_json(moved.notes))


def _put_read(
    transaction: Transaction,
    progress: RunProgress,
    partition: Partition,
    moved: PartitionProgress,
    first: int,
    records: int,
) -> None:
    key = (progress.number, partition.source, stored_name(partition.name))
    before = find_row(transaction.connection, "reads", key)
    if before is None:
        progress.reads += 1
    else:
        first, records = before[3], before[5] + records
    row = (*key, first, moved.position, records, moved.digest, as_json(moved.notes))
    change = replace_row(transaction.connection, "reads", row)
    progress.reads_seal = seal(int.from_bytes(progress.reads_seal, "big") + change)


def _put_journal(transaction: Transaction, progress: RunProgress, checkpoint: Checkpoint) -> None:
    head, connection = transaction.head, transaction.connection
    if not checkpoint.journal:
        return
    head.journal += 1
    progress.journal_to = head.journal
    packed = pack_journal(checkpoint.journal)
    digest = journal_digest(head.journal, progress.at, packed)
    connection.execute("INSERT INTO journal VALUES (?, ?, ?, ?)", (head.journal, progress.at, packed, digest))
    head.next_batch = max(head.next_batch, 1 + max(entry.batch for entry in checkpoint.journal))
    # Numbers go up: what was intended before the last acked batch and is not acked was never cut again, or is left.
    if connection.execute("SELECT 1 FROM intents LIMIT 1").fetchone():
        last = max(entry.batch for entry in checkpoint.journal)
        transaction.clear(
            "intents", "batch <= ? AND batch NOT BETWEEN ? AND ?", last, *(checkpoint.postponed or (0, -1))
        )


def _put_counts(transaction: Transaction, counts: Mapping[str, Counts]) -> None:
    for source, now in counts.items():
        before = find_row(transaction.connection, "counts", (source,))
        transaction.put("counts", source, before[1] if before else as_json(Counts()), as_json(now))


def _read_ranges(journal: Sequence[JournalEntry]) -> dict[Partition, tuple[int, int]]:
    """Return for each partition where its first range starts, and how many records they have."""
    read: dict[tuple[str, str], tuple[int, int]] = {}
    for entry in journal:
        for r in entry.ranges:
            first, records = read.get((r.source, r.partition), (r.start, 0))
            read[r.source, r.partition] = (first, records + r.records)
    return {Partition(*key): found for key, found in read.items()}
