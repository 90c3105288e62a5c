"""What a pipeline says of itself: where it stands, how ready it is, and in the end what it did."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from datetime import UTC, datetime

from streambatch.core.batches import TRIGGERS, Batch
from streambatch.core.budget import Budget
from streambatch.core.clock import Clock
from streambatch.core.events import Observer, State
from streambatch.core.ledger import Ledger
from streambatch.core.parts import Reader
from streambatch.core.report import DriverState, Ended, Quantiles, RunReport, Snapshot
from streambatch.core.text import encodable
from streambatch.delivery.outbox import Outbox
from streambatch.microbatch.inbox import Inbox
from streambatch.microbatch.inflight import InFlight
from streambatch.microbatch.intake import SourceIntake
from streambatch.microbatch.window import BatchPolicy
from streambatch.scoring.executors.choice import Workers

STALL_SECONDS = 5.0
"""How long a sink may take for a write before the pipeline is no longer ready."""


class Vitals(Observer):
    """The state of one run, and what its parts say; call it on the event loop.

    waits_for: what keeps the next batch from being cut. scored_at: when a worker last finished a batch, or got one
    after a pause (monotonic seconds). report: set when the run has ended.
    """

    def __init__(self, pipeline: str, sink: str, *, clock: Clock, observer: Observer) -> None:
        self._pipeline, self._sink, self._clock, self._observer = pipeline, sink, clock, observer
        self.run_id = _new_run_id(clock)
        self.state: State = "starting"
        self.report: RunReport | None = None
        self.waits_for = "input"
        self._sources_out: dict[str, tuple[float, BaseException]] = {}
        self._batches: dict[str, int] = dict.fromkeys(TRIGGERS, 0)
        self._latency = Quantiles()
        self.begin()

    def begin(self) -> None:
        """Count the time from now."""
        self._started, self._started_wall = self._clock.monotonic(), self._clock.wall()
        self.scored_at = self._started

    def enter(self, state: State) -> None:
        """Go over to another state."""
        if self.state != state:
            self.state = state
            self._observer.state_changed(state)

    def source_failed(self, source: str, error: BaseException) -> None:
        """Learn that a source can't be read for now."""
        self._sources_out[source] = (self._clock.monotonic(), error)

    def source_recovered(self, source: str) -> None:
        """Learn that it can again."""
        self._sources_out.pop(source, None)

    def cut(self, batch: Batch) -> None:
        """Count a batch that goes to the workers."""
        self._batches[batch.trigger] += 1
        self._observer.batch_closed(batch)

    def written(self, batch: Batch) -> None:
        """Count the latencies of a batch that was written."""
        for chunk in batch.chunks:
            self._latency.add(batch.stamps.written - chunk.arrived_at, chunk.count)

    def end(self, ended: Ended, error: BaseException | None, ledger: Ledger) -> RunReport:
        """Return what the run did."""
        seconds, totals = self._clock.monotonic() - self._started, ledger.totals()
        self.report = RunReport(
            run=self.run_id,
            pipeline=self._pipeline,
            ended=ended,
            error=encodable(str(error) or type(error).__name__) if error is not None else None,
            seconds=seconds,
            records=totals.as_records(),
            batches=dict(self._batches),
            records_per_second=(totals.scored + totals.dead_lettered) / max(seconds, 1e-9),
            latency_seconds=self._latency.as_dict(),
        )
        self.enter("failed" if ended == "failed" else "stopped")
        return self.report

    def snapshot(
        self,
        ledger: Ledger,
        inbox: Inbox,
        budget: Budget,
        in_flight: InFlight,
        outbox: Outbox,
        *,
        policy: BatchPolicy,
        workers: Workers,
        worker_restarts: int,
        intakes: Mapping[str, SourceIntake],
        readers: Collection[Reader],
    ) -> Snapshot:
        """Return counts and state of this moment."""
        now = self._clock.monotonic()
        return Snapshot(
            pipeline=self._pipeline,
            run_id=self.run_id,
            state=self.state,
            started_at_wall=self._started_wall,
            taken_at=now,
            uptime_seconds=now - self._started,
            sources={name: counts.copy() for name, counts in ledger.sources.items()},
            totals=ledger.totals(),
            dead_letters=dict(ledger.dead_letters),
            batches=dict(self._batches),
            queue_records=inbox.records,
            queue_bytes=inbox.size,
            queue_capacity_records=inbox.limits.max_records,
            queue_capacity_bytes=inbox.limits.max_bytes,
            queue_oldest_arrival=inbox.oldest_arrival,
            memory_used=budget.used,
            memory_capacity=budget.capacity,
            inflight_batches=in_flight.batches,
            batch_target_records=policy.max_records,
            batch_target_wait=policy.max_wait,
            workers=workers.count,
            worker_restarts=worker_restarts,
            spools={reader.name: spool for reader in readers if (spool := reader.spool) is not None},
            drivers=self._drivers(now, in_flight, outbox, is_supervised=workers.timeout is not None),
            latency=self._latency.as_dict(),
            not_ready=self._not_ready(now, outbox),
            last_synced_wall=outbox.last_synced_wall,
            last_written_wall=outbox.last_written_wall,
            waiting_seconds={name: intake.waited(now) for name, intake in intakes.items()},
            backlogs={reader.name: backlog for reader in readers if (backlog := reader.backlog()) is not None},
        )

    def _drivers(
        self, now: float, in_flight: InFlight, outbox: Outbox, *, is_supervised: bool
    ) -> dict[str, DriverState]:
        """A call of the model that has a time limit is a declared wait: it is given up in time."""
        scoring = "model" if is_supervised else None
        writing = "backpressure" if outbox.writing_since is not None else "input"
        return {
            "batch": DriverState(now, self.waits_for),
            "score": DriverState(self.scored_at, scoring if in_flight.scoring else "input"),
            "sink": DriverState(now, "retry" if outbox.outages.current else writing),
        }

    def _not_ready(self, now: float, outbox: Outbox) -> list[str]:
        reasons = [] if self.state == "running" else [f"the pipeline is {self.state}"]
        reasons += outbox.outages.reasons(now)
        reasons += [f"{error}; held for {now - since:.0f} s" for since, error in self._sources_out.values()]
        since = outbox.writing_since
        if since is not None and now - since > STALL_SECONDS and not outbox.outages.current:
            reasons.append(f"sink {self._sink}: a write has been waiting for {now - since:.0f} s")
        return [encodable(reason) for reason in reasons]


def _new_run_id(clock: Clock) -> str:
    started = datetime.fromtimestamp(clock.wall(), UTC)
    return f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
