"""What tests of the state store share: runs, checkpoints and what can be seen of a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streambatch.core.chunks import Partition
from streambatch.core.report import Counts
from streambatch.durability.manifest import describe_run
from streambatch.durability.store.reader import StateReader
from streambatch.durability.store.store import StateStore
from streambatch.durability.stored import Checkpoint, JournalEntry, PartitionProgress, RecordRange, RunStart

READINGS = {"in": {"format": "jsonl", "framing": "lines", "compression": "auto"}}


def run_start(run: str = "r1", started: float = 100.0, readings: dict[str, dict[str, Any]] | None = None) -> RunStart:
    return describe_run(
        run=run,
        pipeline="rides",
        started=started,
        config={"name": "rides", "source": {"in": {"password": "***"}}},
        config_digest="c" * 64,
        model={"path": "model.npz", "format": "linear", "sha256": "d" * 64, "parameters": {"features": 10}},
        sinks={"scores": {"path": "out/scores.jsonl", "format": "jsonl"}},
        readings=READINGS if readings is None else readings,
    )


def checkpoint(
    at: float, batches: Sequence[int], partition: str = "a.jsonl", *, length: int = 0, **changes: Any
) -> Checkpoint:
    """Return a checkpoint of batches of 10 records and 100 bytes each, of one file, batch n from byte 100 n."""
    key = Partition("in", partition)
    entries = [
        JournalEntry(n, (RecordRange("in", partition, 100 * n, 100 * n + 100, 10),), 9, 1, (1, 40 * n + 40))
        for n in batches
    ]
    end = 100 * batches[-1] + 100 if batches else 0
    moved = {
        key: PartitionProgress(position=end, read_to=end + 50, notes={"inode": 7, "path": partition}, digest="e" * 64)
    }
    count = 10 * (batches[-1] + 1) if batches else 0
    counts = Counts(received=count + 5, scored=count * 9 // 10, dead_lettered=count // 10, unacked=5)
    return Checkpoint(
        **{
            "at": at,
            "counts": {"in": counts},
            "partitions": moved if batches else {},
            "outputs": {"scores": {"segment": 1, "length": length or end}},
            "journal": entries,
            **changes,
        }
    )


def opened(folder: Path) -> StateStore:
    store = StateStore(folder)
    store.open()
    return store


def seen(store: StateReader) -> tuple[Any, ...]:
    """Return all that a store says."""
    runs = store.runs()
    return (
        store.load(),
        store.intended(),
        runs,
        [store.manifest(run.run) for run in runs],
        [list(store.journal(run.run)) for run in runs],
    )
