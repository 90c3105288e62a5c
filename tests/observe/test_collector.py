"""What a scrape makes of events and of a snapshot."""

from __future__ import annotations

import errno

import anyio
import anyio.lowlevel
import pytest
from prometheus_client import CollectorRegistry

from streambatch.core.errors import SinkError
from streambatch.core.report import Counts, DriverState
from streambatch.observe import Metrics, MetricsObserver, sample_loop_lag
from streambatch.testing import LoopClock
from streambatch.version import __version__
from tests.observe.batches import EARLY, LATE, TIMES, batch_of, outcome_of
from tests.observe.scrapes import Scrape, Scraped
from tests.snapshots import FakePipeline, snapshot_of

COUNTS = Counts(
    received=100, recovered=5, scored=60, dead_lettered=4, dropped={"filtered": 7, "queue_full": 9}, unacked=25,
    refused={"size": 2},
)  # fmt: skip


class StoppedClock:
    """Says what it is told to say."""

    def __init__(self, monotonic: float, wall: float) -> None:
        self._monotonic, self._wall = monotonic, wall

    def monotonic(self) -> float:
        return self._monotonic

    def wall(self) -> float:
        return self._wall


def test_counts_are_the_snapshots_and_balance() -> None:
    other = Counts(received=11, scored=11)
    scraped = Scraped(
        FakePipeline(
            snapshot_of(
                sources={"one": COUNTS, "two": other},
                dead_letters={("decode", "invalid_json"): 3, ("score", "model_error"): 1},
                batches={"size": 8, "time": 2},
            )
        )
    )
    scrape = scraped.scrape()
    assert scrape.value("source_received_records_total", source="one") == 100
    assert scrape.value("records_recovered_total", source="one") == 5
    assert scrape.value("records_scored_total", source="two") == 11
    assert scrape.value("records_dead_lettered_total", stage="decode", reason="invalid_json") == 3
    assert scrape.value("records_dropped_total", source="one", reason="filtered", intentional="true") == 7
    assert scrape.value("records_dropped_total", source="one", reason="queue_full", intentional="false") == 9
    assert scrape.value("source_refused_records_total", source="one", reason="size") == 2
    assert scrape.value("batches_total", trigger="size") == 8
    assert scrape.value("batches_total", trigger="flush") == 0
    assert scrape.value("records_unacked") == 25
    assert scrape.value("records_imbalance") == 0
    came = sum(scrape.values("source_received_records_total")) + sum(scrape.values("records_recovered_total"))
    gone = ("records_scored_total", "records_dead_lettered_total", "records_dropped_total", "records_unacked")
    assert came == sum(sum(scrape.values(name)) for name in gone)


def test_a_scrape_takes_one_snapshot() -> None:
    scraped = Scraped()
    scraped.scrape()
    assert scraped.pipeline.snapshots == 1


def test_a_record_that_is_lost_shows() -> None:
    scraped = Scraped(FakePipeline(snapshot_of(sources={"one": Counts(received=3, scored=2)})))
    assert scraped.scrape().value("records_imbalance") == 1


def test_events_of_a_source_are_counted() -> None:
    scraped = Scraped()
    observer = scraped.observer
    observer.records_received("rides_in", 3, 400, 99.0)
    observer.records_received("rides_in", 1, 100, 99.5)
    observer.source_blocked("rides_in", 0.25)
    for _ in range(3):
        observer.connection_opened("rides_in")
    observer.connection_closed("rides_in")
    observer.connection_rejected("rides_in", "limit")
    observer.file_changed("rides_in", "/var/log/a.jsonl", "rotated")
    scrape = scraped.scrape()
    assert scrape.value("source_received_bytes_total", source="rides_in") == 500
    assert scrape.value("source_blocked_seconds_total", source="rides_in") == 0.25
    assert scrape.value("source_connections_opened_total", source="rides_in") == 3
    assert scrape.value("source_connections", source="rides_in") == 2
    assert scrape.value("source_connections_rejected_total", reason="limit") == 1
    assert scrape.value("source_connections_rejected_total", reason="timeout") == 0
    assert scrape.value("source_file_events_total", event="rotated") == 1
    assert "/var/log" not in scraped.text()


def test_records_that_die_or_are_filtered_don_t_reach_the_next_stage() -> None:
    scraped = Scraped()
    batch = batch_of([(10, EARLY)], TIMES)
    outcome = outcome_of(batch, rejects=[(0, "frame"), (1, "decode"), (2, "decode"), (3, "score")], filtered=2)
    scraped.observer.batch_written(batch, outcome)
    scrape = scraped.scrape()
    passed = {labels["stage"]: value for labels, value in scrape.find("stage_records_total", outcome="ok")}
    died = {labels["stage"]: value for labels, value in scrape.find("stage_records_total", outcome="rejected")}
    assert passed == {
        "frame": 9, "decode": 7, "validate": 7, "preprocess": 7, "score": 4, "encode": 4, "sink": 4,
    }  # fmt: skip
    assert died == {"frame": 1, "decode": 2, "validate": 0, "preprocess": 0, "score": 1, "encode": 0, "sink": 0}
    assert scrape.value("sink_sent_records_total", sink="scores") == 4
    assert scrape.value("sink_sent_bytes_total", sink="scores") == len(outcome.payload)


def test_batches_are_counted_by_their_size() -> None:
    scraped = Scraped()
    for batch in (batch_of([(2, EARLY), (1, LATE)], TIMES), batch_of([(512, EARLY)], TIMES)):
        scraped.observer.batch_written(batch, outcome_of(batch))
    scrape = scraped.scrape()
    assert scrape.value("batch_records_count") == 2
    assert scrape.value("batch_records_sum") == 515
    assert scrape.value("batch_records_bucket", le="4.0") == 1
    assert scrape.value("batch_records_bucket", le="512.0") == 2
    assert scrape.value("batch_bytes_sum") == 2 * 515
    assert scrape.value("batch_fill_seconds_sum") == 2 * 1.0


def test_times_of_the_queue_are_wall_times() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, clock=StoppedClock(monotonic=102.0, wall=5000.0))
    pipeline, observer = FakePipeline(), MetricsObserver()
    metrics.attach(pipeline, observer, model_format="linear")
    observer.records_received("rides_in", 1, 1, at=90.0)
    pipeline.now = snapshot_of(
        taken_at=100.0,
        queue_records=4,
        queue_size=400,
        queue_oldest_arrival=70.0,
        drivers={"batch": DriverState(60.0, None), "sink": DriverState(10.0, "backpressure")},
    )
    scrape = Scrape(registry)
    assert scrape.value("queue_oldest_record_timestamp_seconds") == 4970.0
    assert scrape.value("source_last_received_timestamp_seconds") == 4990.0
    assert scrape.value("heartbeat_timestamp_seconds", stage="batch") == 4960.0
    assert scrape.value("heartbeat_timestamp_seconds", stage="sink") == 5000.0, "it waits by design"
    assert scrape.value("model_loaded_timestamp_seconds") == 5000.0
    assert (scrape.value("queue_records"), scrape.value("queue_bytes")) == (4, 400)


def test_an_empty_queue_has_no_old_record() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, clock=StoppedClock(monotonic=100.0, wall=5000.0))
    metrics.attach(FakePipeline(), MetricsObserver(), model_format="linear")
    assert Scrape(registry).value("queue_oldest_record_timestamp_seconds") == 5000.0


@pytest.mark.parametrize("state", ["starting", "running", "draining", "stopped", "failed"])
def test_a_pipeline_is_in_one_state(state: str) -> None:
    scrape = Scraped(FakePipeline(snapshot_of(state=state))).scrape()
    assert {labels["state"]: value for labels, value in scrape.find("pipeline_state")} == {
        each: float(each == state) for each in ("starting", "running", "draining", "stopped", "failed")
    }


def test_versions_and_digests_are_told() -> None:
    scrape = Scraped().scrape()
    assert scrape.value("build_info", version=__version__, revision="abc123") == 1
    assert scrape.value("config_info", digest="c0ffee") == 1
    assert scrape.value("model_info", format="linear", digest="beef") == 1


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (OSError(errno.ENOSPC, "full"), "no_space"),
        (OSError(errno.EDQUOT, "quota"), "no_space"),
        (OSError(errno.EIO, "broken"), "io"),
        (OSError(errno.EROFS, "read-only"), "permission"),
        (PermissionError(errno.EACCES, "no"), "permission"),
        (BrokenPipeError(errno.EPIPE, "gone"), "connection"),
        (TimeoutError(), "timeout"),
        (OSError(errno.EBADF, "closed"), "other"),
        (OSError("no number"), "other"),
        (ValueError("a secret"), "other"),
    ],
)
def test_sink_errors_are_counted_by_what_lies_beneath(error: Exception, error_type: str) -> None:
    scraped = Scraped()
    wrapped = SinkError("scores", "can't write")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        scraped.observer.sink_failed("scores", each)
    scrape = scraped.scrape()
    assert scrape.value("sink_errors_total", sink="scores", error_type=error_type) == 2
    assert sum(scrape.values("sink_errors_total")) == 2
    assert "secret" not in scraped.text()


def test_checkpoints_are_counted_and_timed() -> None:
    scraped = Scraped()
    scraped.observer.synced(0.02, ok=True)
    scraped.observer.synced(0.5, ok=False)
    scrape = scraped.scrape()
    assert scrape.value("checkpoints_total", outcome="ok") == 1
    assert scrape.value("checkpoints_total", outcome="failed") == 1
    assert scrape.value("checkpoint_duration_seconds_sum") == pytest.approx(0.52)


def test_registries_never_collide() -> None:
    one, two = Scraped(), Scraped()
    one.observer.connection_opened("rides_in")
    assert one.scrape().value("source_connections") == 1
    assert two.scrape().value("source_connections") == 0


def test_a_registry_takes_one_metrics() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    with pytest.raises(ValueError, match="streambatch_"):
        Metrics(registry)


def test_pipelines_share_a_metrics() -> None:
    scraped = Scraped()
    other = FakePipeline(snapshot_of(pipeline="loads", not_ready=["the pipeline is draining"]))
    scraped.metrics.attach(other, MetricsObserver(), model_format="python")
    scrape = scraped.scrape()
    assert {labels["pipeline"] for labels, _ in scrape.find("records_unacked")} == {"rides", "loads"}
    assert scrape.value("ready") == 0, "one of them is not"
    assert len(scrape.values("event_loop_lag_seconds_sum")) == 1


def test_a_pipeline_takes_the_place_of_an_earlier_one_of_its_name() -> None:
    scraped = Scraped()
    again = FakePipeline(snapshot_of(sources={"rides_in": COUNTS}))
    scraped.metrics.attach(again, MetricsObserver(), model_format="linear")
    assert scraped.scrape().value("records_unacked") == 25


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_a_blocked_loop_shows_as_lag() -> None:
    scraped = Scraped()
    clock = LoopClock()
    late = iter([0.0, 0.0, 3.0])

    class Stalling(LoopClock):
        """Every second reading is taken after a sleep: the loop comes back later than asked for."""

        readings = 0

        def monotonic(self) -> float:
            self.readings += 1
            return clock.monotonic() + (next(late, 0.0) if self.readings % 2 == 0 else 0.0)

    with anyio.move_on_after(0.8):
        await sample_loop_lag(scraped.metrics, Stalling())
    scrape = scraped.scrape()
    assert scrape.value("event_loop_lag_seconds_count") == 3
    assert scrape.value("event_loop_lag_seconds_sum") == pytest.approx(3.0)


@pytest.mark.anyio
async def test_tasks_are_counted_on_asyncio_alone(anyio_backend_name: str) -> None:
    expected = [1.0] if anyio_backend_name == "asyncio" else []
    async with anyio.create_task_group() as tasks:
        before = Scraped().scrape().values("asyncio_tasks")
        tasks.start_soon(anyio.sleep_forever)
        await anyio.lowlevel.checkpoint()
        after = Scraped().scrape().values("asyncio_tasks")
        tasks.cancel_scope.cancel()
    assert [b - a for a, b in zip(before, after, strict=True)] == expected
