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
    """An acked batch: what it was cut from, and what became of it."""

    batch: int
    """Its number."""
    ranges: tuple[RecordRange, ...]
    scored: int
    dead: int
    place: tuple[int, int] | None = None
    """The output's segment that holds its scores, and where in it they end; None where outputs have no segments."""


class IntendedBatch(msgspec.Struct, frozen=True):
    """A batch that is about to be sent: cut the same again, it has the same number and the same id."""

    batch: int
    """Its number."""
    ranges: tuple[RecordRange, ...]
    revision: int = 0
    """How often it had to be cut otherwise than it was sent before; each revision has an id of its own."""


class PartitionProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a partition that can be read again has come."""

    position: int
    """Where its acked records end."""
    read_to: int
    """Where the records end that were ever received."""
    notes: PartitionNotes
    digest: str | None = None
    """Sha256, in hexadecimal, of the records that this run has acked of it, from its first position to `position`."""


class RunChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change of config or model while a run went on. It holds for all batches from `batch` to the next change."""

    at: float
    """Wall seconds."""
    batch: int
    """The number of the first batch, as in the journal."""
    config: Mapping[str, Any]
    """The sections of the effective config that differ from those before, whole."""
    config_digest: str | None
    """As in RunStart."""
    model: Mapping[str, Any]
    """As in RunStart."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """All that a checkpoint stores at once."""

    at: float
    """Wall seconds."""
    counts: Mapping[str, Counts] = {}
    """Of this run, by source."""
    partitions: Mapping[Partition, PartitionProgress] = {}
    """Those that moved or have new notes."""
    forgotten: Sequence[Partition] = ()
    """Partitions that are over."""
    outputs: Mapping[str, OutputMark] = {}
    """Marks that changed, by the output's name."""
    steps: bytes | None = None
    """State of the steps with memory; None leaves what is stored."""
    journal: Sequence[JournalEntry] = ()
    """The batches acked since the last checkpoint."""
    changes: Sequence[RunChange] = ()
    """Those that began with one of these batches."""
    postponed: tuple[int, int] | None = None
    """First and last number of the intended batches that a later run is to cut; they stay when later ones are acked."""


class StoredPartition(SavedPartition, frozen=True, kw_only=True):
    """A saved partition, with details for those who read the state."""

    records: int
    """Its acked records, of all runs."""
    digest: str | None
    """Of those that the last run acked."""


class StoredState(msgspec.Struct, frozen=True, kw_only=True):
    """What the last checkpoint left."""

    state_id: str
    """Made with the file: numbers of batches of different states are told apart by it."""
    readings: Mapping[str, Mapping[str, Any]]
    """By source, the options that its positions depend on."""
    partitions: Mapping[str, Mapping[str, StoredPartition]]
    """By source and name."""
    outputs: Mapping[str, OutputMark]
    """By the output's name."""
    steps: bytes | None
    """State of the steps with memory."""
    counts: Mapping[str, Counts]
    """By source, of all runs; `unacked` is the last run's."""
    runs: int
    """The number of the last run."""
    next_batch: int
    """The number of the next new batch."""
    checkpointed_at: float | None
    """Wall seconds; None before the first checkpoint."""


@resolved_early
class RunStart(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run when it begins. `describe_run` fills it."""

    run: str
    pipeline: str
    started: float
    """Wall seconds."""
    pid: int
    version: str
    revision: str | None
    python: str
    numpy: str
    config: Mapping[str, Any]
    config_digest: str | None
    model: Mapping[str, Any]
    sinks: Mapping[str, Mapping[str, Any]]
    """What is known of each output, by the name of its mark."""
    readings: Mapping[str, Mapping[str, Any]]
    """As in StoredState."""


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
