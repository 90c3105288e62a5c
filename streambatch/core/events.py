"""What happens in a pipeline, as calls of an observer. The core knows no metrics, logs or pages; they observe.

Events come per chunk, batch or connection, never per record. An observer is called on the event loop, except where an
event says otherwise. It must not block and must not raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from streambatch.core.batches import Batch
    from streambatch.core.outcomes import Outcome
    from streambatch.core.types import FloatArray

FileEvent = Literal["opened", "rotated", "truncated", "deleted", "completed"]
RejectedConnection = Literal["limit", "timeout"]
Refusal = Literal["full", "size"]
PipelineState = Literal["starting", "running", "draining", "stopped", "failed"]
STATES: tuple[PipelineState, ...] = ("starting", "running", "draining", "stopped", "failed")


class Observer:
    """An observer that does nothing; subclass it and override what is of interest."""

    def state_changed(self, state: PipelineState) -> None:
        """The pipeline as a whole moved on."""

    def records_received(self, source: str, records: int, size: int, at: float) -> None:
        """A chunk was framed and counted; `at` is monotonic seconds."""

    def records_recovered(self, source: str, records: int) -> None:
        """Records were read again that an earlier run had received and not acked."""

    def records_refused(self, source: str, records: int, reason: Refusal) -> None:
        """A sender was told no before anything was received."""

    def source_blocked(self, source: str, seconds: float) -> None:
        """A source waited so long for room."""

    def source_failed(self, source: str, error: BaseException) -> None:
        """A source can't read what it should, and tries again until it can; called once, not for each try."""

    def source_recovered(self, source: str) -> None:
        """A source that had failed can read all it should."""

    def connection_opened(self, source: str) -> None:
        """A client connected."""

    def connection_closed(self, source: str) -> None:
        """A client that had connected is gone."""

    def connection_rejected(self, source: str, reason: RejectedConnection) -> None:
        """A client was sent away or cut off."""

    def datagrams_dropped(self, source: str, count: int) -> None:
        """The system dropped so many datagrams before they could be read."""

    def file_changed(self, source: str, path: str, event: FileEvent) -> None:
        """Something happened to an input file."""

    def batch_closed(self, batch: Batch) -> None:
        """The window closed."""

    def features_seen(self, x: FloatArray) -> None:
        """The features of a batch were decoded: x (n, *shape), read-only, n at least 1. The scoring thread calls it."""

    def scores_seen(self, scores: FloatArray) -> None:
        """A batch came from the model: scores (n,) or (n, k), read-only, n at least 1. The scoring thread calls it."""

    def batch_scored(self, batch: Batch, outcome: Outcome) -> None:
        """A worker is done with a batch."""

    def batch_written(self, batch: Batch, outcome: Outcome) -> None:
        """Scores and dead letters of a batch were handed to their outputs; its stamps are complete up to `written`."""

    def batch_acked(self, batch: Batch, outcome: Outcome) -> None:
        """Scores and dead letters of a batch are durable; its stamps are complete."""

    def sink_failed(self, sink: str, error: BaseException) -> None:
        """Writing to the sink failed."""

    def sink_retried(self, sink: str) -> None:
        """A write that failed for an outage is tried again."""

    def sink_recovered(self, sink: str) -> None:
        """An outage of the sink is over."""

    def synced(self, seconds: float, *, ok: bool) -> None:
        """Outputs were made durable, or could not be."""


class Observers(Observer):
    """Several observers as one; an event that only one of them overrides goes to it directly."""

    def __init__(self, *observers: Observer) -> None:
        for event in [name for name in vars(Observer) if not name.startswith("_")]:
            unheard = getattr(Observer, event)
            methods = [getattr(one, event) for one in observers if not _is(getattr(one, event), unheard)]
            # Set up once: an event that no observer overrides stays the empty method, and a single one is called
            # without a loop.
            if methods:
                setattr(self, event, methods[0] if len(methods) == 1 else _call_all(methods))


def _is(method: Any, unheard: object) -> bool:
    """Whether an observer's method is still the one that does nothing."""
    return getattr(method, "__func__", None) is unheard


def _call_all(methods: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def call(*args: Any, **kwargs: Any) -> None:
        for method in methods:
            method(*args, **kwargs)

    return call
