"""What the checkpoint store takes and gives back: checkpoints, the journal's entries, the state they add up to.

Names of partitions may hold any bytes of a file's name, as surrogates; all else is text that can be encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from streambatch.core.checkpoints import (
    OutputMark,
    PartitionNotes,
    SavedPartition,
    resolved_early,
)
from streambatch.core.chunks import Partition
from streambatch.core.report import Counts, Ended

RunEnding = Literal["running", "interrupted", "input_ended", "stopped", "failed"]
"""Why a run ended, or that it goes on; `interrupted` is one that was killed."""


class RecordRange(msgspec.Struct, frozen=True, gc=False):
    """Consecutive records of one partition: where the first of them starts, where the last ends, how many."""

    source: str
    partition: str
    start: int
    end: int
    records: int


class JournalEntry(msgspec.Struct, frozen=True):
    """An acked batch: its number, what it was cut from, what became of it, where its scores end.

    place: number of the output's segment and the length up to which the batch reaches; None where outputs have none.
    """

    batch: int
    ranges: tuple[RecordRange, ...]
    scored: int
    dead: int
    place: tuple[int, int] | None = None


class IntendedBatch(msgspec.Struct, frozen=True):
    """A batch that is about to be sent: cut the same again, it has the same number and the same id.

    revision: how often it had to be cut otherwise than it was sent before; each has an id of its own.
    """

    batch: int
    ranges: tuple[RecordRange, ...]
    revision: int = 0


class PartitionProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a partition that can be read again has come.

    digest: sha256, in hexadecimal, of what this run has acked of it, from the first position to `position`.
    """

    position: int
    read_to: int
    notes: PartitionNotes
    digest: str | None = None


class RunChange(msgspec.Struct, frozen=True, kw_only=True):
    """What was changed while a run went on, and since which batch: all from that number on were made with it, up to
    the next change.

    at: wall seconds. batch: the number of the first batch, as in the journal. config: the sections of the effective
    config that differ from those before, whole. config_digest, model: as in RunStart.
    """

    at: float
    batch: int
    config: Mapping[str, Any]
    config_digest: str | None
    model: Mapping[str, Any]


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """All that a checkpoint stores at once.

    at: wall seconds. counts: of this run, by source. partitions: those that moved or have new notes.
    forgotten: partitions that are over. outputs: marks that changed, by name. steps: state of the steps with memory;
    None leaves what is stored. journal: the batches acked since the last checkpoint. changes: those that began with
    one of these batches. left: first and last number of intended batches that stay so, whatever is acked.
    """

    at: float
    counts: Mapping[str, Counts] = {}
    partitions: Mapping[Partition, PartitionProgress] = {}
    forgotten: Sequence[Partition] = ()
    outputs: Mapping[str, OutputMark] = {}
    steps: bytes | None = None
    journal: Sequence[JournalEntry] = ()
    changes: Sequence[RunChange] = ()
    left: tuple[int, int] | None = None


class StoredPartition(SavedPartition, frozen=True, kw_only=True):
    """A saved partition with the number of its acked records, of all runs, and the digest of the last run's."""

    records: int
    digest: str | None


class StoredState(msgspec.Struct, frozen=True, kw_only=True):
    """What the last checkpoint left.

    state_id: made with the file; with it a batch's number is its own for good. readings: by source, the options that
    its positions depend on. counts: by source, of all runs; `unacked` is the last run's. runs: number of the last run.
    checkpointed_at: wall seconds; None before the first checkpoint.
    """

    state_id: str
    readings: Mapping[str, Mapping[str, Any]]
    partitions: Mapping[str, Mapping[str, StoredPartition]]
    outputs: Mapping[str, OutputMark]
    steps: bytes | None
    counts: Mapping[str, Counts]
    runs: int
    next_batch: int
    checkpointed_at: float | None


@resolved_early
class RunStart(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run when it begins. `describe_run` fills it.

    started: wall seconds. readings: as in StoredState. sinks: what is known of each output, by the name of its mark.
    """

    run: str
    pipeline: str
    started: float
    pid: int
    version: str
    revision: str | None
    python: str
    numpy: str
    config: Mapping[str, Any]
    config_digest: str | None
    model: Mapping[str, Any]
    sinks: Mapping[str, Mapping[str, Any]]
    readings: Mapping[str, Mapping[str, Any]]


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A run in short. Times are wall seconds; a run that was killed ended when it last stored a checkpoint."""

    run: str
    number: int
    pipeline: str
    started: float
    ended: float | None
    why: RunEnding
    error: str | None
    counts: Counts
    checkpoints: int


@resolved_early
class RunEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended. report: as in `--report`."""

    ended: Ended
    at: float
    error: str | None
    report: Mapping[str, Any] | None
