"""Histograms of batches and their latencies, filled from many batches at a time.

The parts of a latency are differences of one vector of timestamps, weighted by the scored records, so that the sums of
the parts add up to the end-to-end sum. A batch costs one packed row, and one for each of its chunks. numpy folds
hundreds of them into the histograms at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from struct import Struct

import numpy as np
from prometheus_client.utils import floatToGoString

from streambatch.core.batches import Batch
from streambatch.core.chunks import Chunk
from streambatch.core.outcomes import Outcome
from streambatch.core.types import FloatArray, IntArray
from streambatch.observe.catalogue import BYTES, RECORDS, SECONDS

FOLD_BATCHES = 1024
FOLD_CHUNKS = 8192
"""Number of batches, or chunks, after which their rows are folded into the histograms."""
LATENCY = tuple(1e-4 * 1.1**power for power in range(184))
"""Bounds for the quantiles in a status: exact to a tenth, from 0.1 ms to an hour."""

OF_CHUNK = (("wait_seconds", "source"), ("wait_seconds", "queue"), ("wait_seconds", "batch"))
OF_BATCH = (
    ("wait_seconds", "worker"),
    ("stage_duration_seconds", "decode"),
    ("stage_duration_seconds", "validate"),
    ("stage_duration_seconds", "preprocess"),
    ("wait_seconds", "retry"),
    ("stage_duration_seconds", "score"),
    ("stage_duration_seconds", "encode"),
    ("wait_seconds", "sink"),
    ("stage_duration_seconds", "sink"),
)
"""Metric and label of each difference in the vector: first between times of a chunk, then of its batch."""
_CHUNK = attrgetter("arrived_at", "entered_at", "taken_at", "first", "last")
_CHUNK_TIMES = attrgetter("arrived_at", "entered_at", "taken_at")
_BATCH = attrgetter("sequence", "count", "size")
_BATCH_TIMES = attrgetter(
    "opened", "closed", "started", "decoded", "validated", "preprocessed", "retry_seconds", "scored", "encoded",
    "sink_started", "written",
)  # fmt: skip
# A batch's row: its _BATCH, number of chunks, bytes of scores, _BATCH_TIMES.
_CHUNK_ROW, _BATCH_ROW, _ACK_ROW = Struct("5d"), Struct("16d"), Struct("2d")
_RETRY = 11
"""The column of retry_seconds, the one duration among times: added to the column before, it becomes a time."""
_STAGES = {label: at for at, (name, label) in enumerate(OF_BATCH) if name == "stage_duration_seconds"}


class Buckets:
    """Histograms of one or more series over the same bounds."""

    def __init__(self, bounds: Sequence[float], series: int = 1) -> None:
        self._bounds = np.array(bounds)
        self._limits = [*map(floatToGoString, bounds), "+Inf"]
        self._counts = np.zeros((series, len(self._limits)))
        self._sums = np.zeros(series)

    def add(self, values: FloatArray, weights: FloatArray | IntArray) -> None:
        """Add values of shape (n, series), or (n,) for one series. weights: (n,), how often each row counts."""
        series, width = self._counts.shape
        values = values.reshape(-1, series)
        # One bincount for all series: each has its own range of cells.
        cells = np.searchsorted(self._bounds, values) + np.arange(0, series * width, width)
        counted = np.bincount(cells.ravel(), np.repeat(weights, series), series * width)
        self._counts += counted.reshape(series, width)
        self._sums += weights @ values

    def add_one(self, value: float) -> None:
        """Add one value to the only series."""
        self.add(np.array([value]), np.ones(1))

    def sampled(self, series: int = 0) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulative counts by upper bound, and the sum."""
        counts = self._counts[series].cumsum().tolist()
        return list(zip(self._limits, counts, strict=True)), float(self._sums[series])


class BatchHistograms:
    """The histograms of one pipeline's batches."""

    def __init__(self) -> None:
        self.records, self.sizes, self.fill = Buckets(RECORDS), Buckets(BYTES), Buckets(SECONDS)
        self.of_chunks, self.of_batches = Buckets(SECONDS, len(OF_CHUNK)), Buckets(SECONDS, len(OF_BATCH))
        self.end_to_end, self.acks = Buckets(SECONDS), Buckets(SECONDS)
        self.latency = Buckets(LATENCY)


class BatchLog:
    """Logs batches as they are written and acked, and folds many at a time into `histograms`."""

    def __init__(self) -> None:
        self.histograms = BatchHistograms()
        self.batched = self.scored = self.payload_size = 0
        self._busy = np.zeros(len(OF_BATCH))
        self._last_write = 0.0
        self._unacked = np.empty((0, 3))
        self._clear()

    def written(self, batch: Batch, outcome: Outcome) -> None:
        """Log a batch whose stamps are complete up to `written`."""
        chunks = batch.chunks
        self._batches += _BATCH_ROW.pack(*_BATCH(batch), len(chunks), len(outcome.payload), *_BATCH_TIMES(batch.stamps))
        # The usual batch lost no record: then a chunk's row needs no counting.
        if outcome.rejects or outcome.filtered:
            self._note_partly_scored(chunks, outcome)
        else:
            for chunk in chunks:
                self._chunks += _CHUNK_ROW.pack(*_CHUNK(chunk))
        if len(self._batches) >= FOLD_BATCHES * _BATCH_ROW.size or len(self._chunks) >= FOLD_CHUNKS * _CHUNK_ROW.size:
            self.fold()

    def acked(self, batch: Batch) -> None:
        """Log that a written batch was acked; its stamps are complete."""
        self._acks += _ACK_ROW.pack(batch.sequence, batch.stamps.durable)

    def busy(self) -> dict[str, float]:
        """Return the seconds that each stage worked on the folded batches."""
        return {stage: float(self._busy[at]) for stage, at in _STAGES.items()}

    def fold(self) -> None:
        """Fold all logged batches into the histograms."""
        if self._batches:
            self._fold_written(_matrix(self._batches, _BATCH_ROW), _matrix(self._chunks, _CHUNK_ROW))
        if self._acks:
            self._fold_acks(_matrix(self._acks, _ACK_ROW))
        self._clear()

    def _note_partly_scored(self, chunks: Sequence[Chunk], outcome: Outcome) -> None:
        for chunk, records in zip(chunks, scored_of(chunks, outcome), strict=True):
            self._chunks += _CHUNK_ROW.pack(*_CHUNK_TIMES(chunk), 0, records)

    def _fold_written(self, batches: FloatArray, chunks: FloatArray) -> None:
        sequence, _, _, chunk_counts, _, opened = batches[:, :6].T
        # Now all columns are times, and neighbours can be subtracted.
        batches[:, _RETRY] += batches[:, _RETRY - 1]
        owner = np.repeat(np.arange(len(batches)), chunk_counts.astype(np.intp))
        times, arrived, weights = batches[:, 6:], chunks[:, 0], chunks[:, 4] - chunks[:, 3]
        self._fold_sizes(batches, times[:, 0] - opened, weights)
        self.histograms.of_chunks.add(np.diff(np.column_stack((chunks[:, :3], times[owner, 0]))), weights)
        self.histograms.end_to_end.add(times[owner, -1] - arrived, weights)
        self.histograms.latency.add(times[owner, -1] - arrived, weights)
        self._unacked = np.vstack((self._unacked, np.column_stack((sequence[owner], arrived, weights))))
        parts = np.diff(times)
        self.histograms.of_batches.add(parts, np.bincount(owner, weights))
        # Batches of one write share its times, but the sink was busy only once.
        began = times[:, -2]
        parts[began == np.concatenate(([self._last_write], began[:-1])), -1] = 0.0
        self._last_write = began[-1]
        self._busy += parts.sum(axis=0)

    def _fold_sizes(self, batches: FloatArray, fill: FloatArray, scored: FloatArray) -> None:
        _, records, sizes, _, payload_sizes, _ = batches[:, :6].T
        once = np.ones(len(batches))
        self.histograms.records.add(records, once)
        self.histograms.sizes.add(sizes, once)
        self.histograms.fill.add(fill, once)
        self.batched += int(records.sum())
        self.scored += int(scored.sum())
        self.payload_size += int(payload_sizes.sum())

    def _fold_acks(self, acks: FloatArray) -> None:
        # Acks may come in another order than writes.
        acks = acks[np.argsort(acks[:, 0])]
        sequence, arrived, weights = self._unacked.T
        at = np.minimum(np.searchsorted(acks[:, 0], sequence), len(acks) - 1)
        is_acked = acks[at, 0] == sequence
        self.histograms.acks.add((acks[at, 1] - arrived)[is_acked], weights[is_acked])
        self._unacked = self._unacked[~is_acked]

    def _clear(self) -> None:
        # Packed bytes, since lists of numbers would be objects all over the memory by the time they are folded.
        self._batches, self._chunks, self._acks = bytearray(), bytearray(), bytearray()


def _matrix(rows: bytearray, row: Struct) -> FloatArray:
    return np.frombuffer(rows).reshape(-1, row.size // 8)


def scored_of(chunks: Sequence[Chunk], outcome: Outcome) -> list[int]:
    """Return the number of scored records of each chunk.

    An outcome doesn't say which records a step filtered: they are counted off the first chunks of their source.
    """
    counts = [each.count for each in chunks]
    places = [reject.index for reject in outcome.rejects]
    for at in np.searchsorted(np.cumsum(counts), places, side="right").tolist():
        counts[at] -= 1
    for source, filtered in outcome.filtered.items():
        left = filtered
        for at, each in enumerate(chunks):
            if each.partition.source == source:
                gone = min(counts[at], left)
                counts[at] -= gone
                left -= gone
    return counts
