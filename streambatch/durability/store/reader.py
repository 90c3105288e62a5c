"""What a state file says: the state to resume from, the journal and the runs.

What can't be what was stored is never returned: it raises DamagedStateError.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import msgspec

from streambatch.core.errors import ChangedReadingError, DamagedStateError, StateError
from streambatch.core.report import Counts, total_of
from streambatch.durability.journal import loaded_name, unpack_intent, unpack_journal
from streambatch.durability.manifest import (
    PartitionRead,
    RunProgress,
    as_json,
    build_manifest,
    detail_of,
    end_of,
    from_json,
)
from streambatch.durability.store.database import FILE_NAME, Database
from streambatch.durability.store.schema import SEAL_BYTES, seal_of
from streambatch.durability.stored import (
    IntendedBatch,
    JournalEntry,
    RunEnding,
    RunStart,
    RunSummary,
    StoredPartition,
    StoredState,
)
from streambatch.storage.folder import held_by

_PAGE_ROWS = 64
_JOURNAL_DIGEST_BYTES = 16


class StateReader:
    """What a state file says. Methods block on the disk and may be called from any thread."""

    def __init__(self, folder: Path, database: Database | None = None) -> None:
        self.folder, self.path = folder, folder / FILE_NAME
        self._database = database

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self) -> StoredState:
        """Return what the last checkpoint left."""
        with self._reading() as database:
            head = database.head()
            partitions: dict[str, dict[str, StoredPartition]] = {}
            for source, name, *rest in database.rows("SELECT * FROM partitions"):
                partitions.setdefault(source, {})[loaded_name(name)] = _stored_partition(*rest)
            steps = database.rows("SELECT states FROM steps")
            return StoredState(
                state_id=head.state_id,
                readings={name: from_json(reading) for name, reading in database.rows("SELECT * FROM sources")},
                partitions=partitions,
                outputs={name: from_json(mark) for name, mark in database.rows("SELECT * FROM outputs")},
                steps=steps[0][0] if steps else None,
                counts={name: counts_of_all_runs(*counts) for name, *counts in database.rows("SELECT * FROM counts")},
                runs=head.runs,
                next_batch=head.next_batch,
                checkpointed_at=head.at,
            )

    def check_reading(self, source: str, reading: Mapping[str, Any]) -> None:
        """Raise ChangedReadingError if positions of a source were counted with other options than these."""
        for key, now in from_json(as_json(reading)).items():
            for (stored,) in self._reading_of(source):
                if key in stored and stored[key] != now:
                    raise ChangedReadingError(
                        self.path,
                        f"source.{source}.{key}: found {now!r}, but positions were counted with {stored[key]!r}; "
                        f"change it back, or forget them: streambatch state reset --source {source}",
                    )

    def intended(self) -> list[IntendedBatch]:
        """Return the batches that were about to be sent and are not acked, in order."""
        with self._reading() as database:
            rows = database.rows("SELECT * FROM intents ORDER BY batch")
            return [unpack_intent(number, packed) for number, packed in rows]

    def runs(self) -> list[RunSummary]:
        """Return the runs that are kept, oldest first."""
        with self._reading() as database:
            rows = database.rows("SELECT begun, progress.* FROM runs JOIN progress USING (number) ORDER BY number")
            begun = [(msgspec.convert(from_json(row[0]), RunStart), RunProgress(*row[1:])) for row in rows]
        return [_summary(start, progress, self._why(progress)) for start, progress in begun]

    def manifest(self, run: str) -> dict[str, Any]:
        """Return a run's manifest. Raises StateError for a run that isn't kept."""
        with self._reading() as database:
            begun, progress = self._found(run)
            reads = [
                PartitionRead(*row) for row in database.rows("SELECT * FROM reads WHERE number = ?", progress.number)
            ]
            seals = sum(seal_of("reads", msgspec.structs.astuple(read)) for read in reads)
            if len(reads) != progress.reads or seal(seals) != progress.reads_seal:
                raise DamagedStateError(self.path, f"run {run}: what it read is not what was stored")
            # After the seal was checked, which is over names as they are stored.
            named = [msgspec.structs.replace(read, name=loaded_name(read.name)) for read in reads]
        return build_manifest(begun, progress, self._why(progress), named)

    def has_scored(self, sha256: str) -> bool:
        """Whether a run that is kept scored records, and had a model of this digest at its start or later."""
        query = """SELECT begun, progress.* FROM runs JOIN progress USING (number)
            WHERE instr(begun, ?1) OR instr(detail, ?1)"""
        with self._reading() as database:
            # The query only narrows it down: the digest may also stand in a config, or anywhere else in a row's text.
            for begun, *progress in database.rows(query, sha256):
                start, detail = msgspec.convert(from_json(begun), RunStart), detail_of(RunProgress(*progress))
                models = [start.model, *(change.model for change in detail.changes)]
                has_scores = any(counts.scored for counts in detail.counts.values())
                if has_scores and any(model.get("sha256") == sha256 for model in models):
                    return True
        return False

    def steps_from(self, run: str) -> bytes | None:
        """Return the state of the steps with memory when a run began; None for one that began without."""
        with self._reading() as database:
            for (steps,) in database.rows("SELECT steps_from FROM runs WHERE run = ?", run):
                return steps  # type: ignore[no-any-return]  # a blob
        raise self._unknown(run)

    def journal(self, run: str) -> Iterator[JournalEntry]:
        """Yield a run's acked batches, in the order of their acks. Raises StateError for a run that isn't kept."""
        _, progress = self._found(run)
        next_id = progress.journal_from
        # Page by page: a journal may be larger than memory, and writers wait while rows are read.
        while next_id <= progress.journal_to:
            with self._reading() as database:
                query = "SELECT * FROM journal WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"
                rows = database.rows(query, next_id, progress.journal_to, _PAGE_ROWS)
                # Rows that are missing are damage too: one that can't be right stands for them.
                pages = [self._entries(run, next_id + at, row) for at, row in enumerate(rows or [(None,) * 4])]
            for entries in pages:
                yield from entries
            next_id += len(pages)

    def close(self) -> None:
        """Close the file; does nothing when it is not open."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _entries(self, run: str, wanted: int, row: tuple[Any, ...]) -> list[JournalEntry]:
        number, at, packed, digest = row
        if number != wanted or digest != journal_digest(number, at, packed):
            raise DamagedStateError(self.path, f"run {run}: its journal is not what was stored (row {wanted})")
        return unpack_journal(packed)

    def _reading_of(self, source: str) -> list[tuple[Any]]:
        """Return the options that a source's positions were counted with, if there are positions."""
        with self._reading() as database:
            if not database.rows("SELECT 1 FROM partitions WHERE source = ? LIMIT 1", source):
                return []
            rows = database.rows("SELECT reading FROM sources WHERE name = ?", source)
            return [(from_json(reading),) for (reading,) in rows]

    def _found(self, run: str) -> tuple[RunStart, RunProgress]:
        with self._reading() as database:
            query = "SELECT begun, progress.* FROM runs JOIN progress USING (number) WHERE run = ?"
            for begun, *progress in database.rows(query, run):
                return msgspec.convert(from_json(begun), RunStart), RunProgress(*progress)
        raise self._unknown(run)

    def _unknown(self, run: str) -> StateError:
        return StateError(self.path, f"no run {run}; `streambatch runs list` names those that are kept")

    def _why(self, progress: RunProgress) -> RunEnding:
        ended = end_of(progress)
        if ended is not None:
            return ended.ended
        # A process that was killed has stored no end, and its lock is gone with it.
        is_last = progress.number == self._opened().head().runs
        return "running" if is_last and held_by(self.folder) else "interrupted"

    @contextmanager
    def _reading(self) -> Iterator[Database]:
        """Read several rows of one state. Raises DamagedStateError for what can't be decoded."""
        database = self._opened()
        try:
            with database.held():
                yield database
        except (TypeError, ValueError, LookupError, zlib.error) as error:
            raise DamagedStateError(self.path, f"content that can't be read: {error}") from error

    def _opened(self) -> Database:
        if self._database is None:
            raise StateError(self.path, "not open")
        return self._database


def journal_digest(number: int, at: float, packed: bytes) -> bytes:
    """Return the digest of a row of the journal."""
    content = msgspec.msgpack.encode((number, at, packed))
    return blake2b(content, digest_size=_JOURNAL_DIGEST_BYTES).digest()


def seal(value: int) -> bytes:
    """Return a sum of seals as it is stored."""
    return (value % (1 << 8 * SEAL_BYTES)).to_bytes(SEAL_BYTES, "big")


def counts_of_all_runs(before: str, now: str) -> Counts:
    """Return a source's counts of all runs, from those before this run and its own."""
    return total_of(msgspec.convert(from_json(counts), Counts) for counts in (before, now))


def _stored_partition(position: int, read_to: int, records: int, digest: str | None, notes: str) -> StoredPartition:
    return StoredPartition(position=position, read_to=read_to, notes=from_json(notes), records=records, digest=digest)


def _summary(start: RunStart, progress: RunProgress, why: RunEnding) -> RunSummary:
    ended = end_of(progress)
    stopped = progress.at if why == "interrupted" else None
    return RunSummary(
        run=start.run,
        number=progress.number,
        pipeline=start.pipeline,
        started=start.started,
        ended=ended.at if ended else stopped,
        why=why,
        error=ended.error if ended else None,
        counts=total_of(detail_of(progress).counts.values()),
        checkpoints=progress.checkpoints,
    )
