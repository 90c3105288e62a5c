"""Count the events of a pipeline, for Metrics to serve."""

from __future__ import annotations

import errno
from collections import Counter, defaultdict

from streambatch.core.batches import Batch
from streambatch.core.events import FileEvent, Observer, RejectedConnection
from streambatch.core.outcomes import Outcome
from streambatch.observe.batch_log import BatchLog, Buckets
from streambatch.observe.catalogue import SECONDS, ErrorType


class SourceCounts:
    """Counts from the events of one source."""

    def __init__(self) -> None:
        self.size = 0
        self.last_at: float | None = None
        self.blocked_seconds = 0.0
        self.opened = self.closed = self.datagrams_dropped = 0
        self.rejected: Counter[str] = Counter()
        self.files: Counter[str] = Counter()


class MetricsObserver(Observer):
    """Counts the events of one pipeline. Attach it to Metrics together with its pipeline."""

    def __init__(self) -> None:
        self.sources: defaultdict[str, SourceCounts] = defaultdict(SourceCounts)
        self.batches = BatchLog()
        self.rejected: Counter[str] = Counter()
        self.filtered = 0
        self.sink_errors: Counter[str] = Counter()
        self.sink_retries = 0
        self.checkpoints: Counter[str] = Counter()
        self.checkpoint_duration = Buckets(SECONDS)

    def records_received(self, source: str, records: int, size: int, at: float) -> None:
        counts = self.sources[source]
        counts.size += size
        counts.last_at = at

    def source_blocked(self, source: str, seconds: float) -> None:
        self.sources[source].blocked_seconds += seconds

    def connection_opened(self, source: str) -> None:
        self.sources[source].opened += 1

    def connection_closed(self, source: str) -> None:
        self.sources[source].closed += 1

    def connection_rejected(self, source: str, reason: RejectedConnection) -> None:
        self.sources[source].rejected[reason] += 1

    def datagrams_dropped(self, source: str, count: int) -> None:
        self.sources[source].datagrams_dropped += count

    def file_changed(self, source: str, path: str, event: FileEvent) -> None:
        self.sources[source].files[event] += 1

    def batch_written(self, batch: Batch, outcome: Outcome) -> None:
        self.batches.written(batch, outcome)
        if outcome.rejects:
            self.rejected.update([reject.stage for reject in outcome.rejects])
        if outcome.filtered:
            self.filtered += sum(outcome.filtered.values())

    def batch_acked(self, batch: Batch, outcome: Outcome) -> None:
        self.batches.acked(batch)

    def sink_failed(self, sink: str, error: BaseException) -> None:
        self.sink_errors[_error_type(error)] += 1

    def sink_retried(self, sink: str) -> None:
        self.sink_retries += 1

    def synced(self, seconds: float, *, ok: bool) -> None:
        self.checkpoints["ok" if ok else "failed"] += 1
        self.checkpoint_duration.add_one(seconds)


_ERRNO_TYPES: dict[int | None, ErrorType] = {
    errno.ENOSPC: "no_space", errno.EDQUOT: "no_space", errno.EFBIG: "no_space",
    errno.EIO: "io", errno.EROFS: "permission",
}  # fmt: skip


def _error_type(error: BaseException) -> ErrorType:
    """Return the kind of the error that caused a sink's error."""
    # A SinkOutage wraps the error of the system, which has the kind.
    while error.__cause__ is not None and not isinstance(error, OSError):
        error = error.__cause__
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionError):
        return "connection"
    if isinstance(error, PermissionError):
        return "permission"
    return _ERRNO_TYPES.get(error.errno, "other") if isinstance(error, OSError) else "other"
