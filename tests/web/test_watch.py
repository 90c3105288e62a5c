"""The full status of a pipeline: JSON, without secrets, with a verdict once it is watched."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec
import numpy as np
import pytest

from streambatch.core.batches import Batch, Stamps
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.clock import SystemClock
from streambatch.core.outcomes import Outcome
from streambatch.core.report import Counts
from streambatch.observe import MetricsObserver
from streambatch.web.process import cpus, process_now
from streambatch.web.recent import RecentProblems
from streambatch.web.watch import Watch, past_runs, settings_of
from tests.ops.loads import SETTINGS
from tests.snapshots import FakePipeline, snapshot_of
from tests.web.clients import admin_of, ask, serving

CONFIG = {
    **SETTINGS,
    "model": {"type": "linear", "path": "model.npz"},
    "source": {"rides_in": {"type": "http", "format": "jsonl", "token": "***", "path": "/records"}},
    "http": {"listen": "127.0.0.1:0", "token": "***"},
}


def watch_of(pipeline: FakePipeline, counting: MetricsObserver | None = None, state_dir: Path | None = None) -> Watch:
    clock = SystemClock()
    return Watch(
        pipeline,
        counting or MetricsObserver(),
        RecentProblems(clock),
        clock=clock,
        config=CONFIG,
        config_digest="0123",
        model_digest="sha256:abc",
        state_dir=state_dir,
    )


def test_a_status_is_json_and_holds_neither_monotonic_times_nor_secrets() -> None:
    status = watch_of(FakePipeline()).status()
    text = msgspec.json.encode(status).decode()
    assert "taken_at" not in text
    assert "token" not in text
    assert status["model"] == {"format": "linear", "digest": "sha256:abc"}
    assert status["settings"]["source"] == {"rides_in": {"type": "http", "format": "jsonl"}}
    assert (status["config_digest"], status["verdict"]) == ("0123", None)
    assert "runs" not in status


def test_work_done_is_counted_since_the_start() -> None:
    counting = MetricsObserver()
    counting.records_received("rides_in", 10, 1000, 1.0)
    counting.source_blocked("rides_in", 0.5)
    counting.synced(0.25, ok=True)
    counting.batch_written(written_batch(), Outcome(b"scores", {"rides_in": 10}, (), {}))
    status = watch_of(FakePipeline(snapshot_of(sources={"rides_in": Counts(received=10)})), counting).status()
    assert status["batch"] == {"count": 1, "records": 10}
    assert status["busy_seconds"]["score"] == 1.0
    parts = status["latency_parts"]
    assert parts["records"] == 10
    assert sum(parts["seconds"].values()) == pytest.approx(10 * 3.0)
    ((bound, records),) = status["latency_buckets"].items()
    assert (2.7 < float(bound) < 3.4, records) == (True, 10)
    source = status["sources"]["rides_in"]
    assert (source["received"], source["bytes"], source["blocked_seconds"]) == (10, 1000, 0.5)
    assert status["syncs"] == {"count": 1, "failed": 0, "seconds": 0.25}


def written_batch() -> Batch:
    """Ten records that arrived at 1, waited, were scored from 2 to 3 and written at 4."""
    chunk = Chunk(Partition("rides_in", "a"), b"x" * 1000, np.arange(100, 1001, 100), 0, arrived_at=1.0)
    stamps = Stamps(1.0, 2.0)
    stamps.started = stamps.decoded = stamps.validated = stamps.preprocessed = 2.0
    stamps.scored = stamps.encoded = stamps.sink_started = 3.0
    stamps.written = 4.0
    return Batch(0, (chunk,), 10, 1000, "size", stamps)


def test_two_samples_make_a_verdict() -> None:
    pipeline = FakePipeline()
    watch = watch_of(pipeline)
    watch.sample()
    assert watch.status()["verdict"] is None
    pipeline.now = snapshot_of(uptime_seconds=pipeline.now.uptime_seconds + 1)
    watch.sample()
    verdict = watch.status()["verdict"]
    assert verdict["stage"] == "nothing"
    assert watch.live_view.view()["verdict"] == verdict


def test_runs_of_a_state_that_isn_t_there_are_not_shown(tmp_path: Path) -> None:
    assert past_runs(tmp_path) is None


def test_settings_are_those_of_sections_that_are_there() -> None:
    assert settings_of({"source": {}, "sink": {"scores": {"type": "none"}}}) == {
        "source": {},
        "sink": {"scores": {"type": "none"}},
    }


def test_what_the_process_used_only_grows() -> None:
    before = process_now()
    sum(range(100_000))
    now = process_now()
    assert now["cpu_seconds"] >= before["cpu_seconds"]
    assert cpus() >= 1
    assert now["rss_bytes"] is None or now["rss_bytes"] > 1 << 20


def test_worker_processes_count_while_they_run_and_when_they_have_ended() -> None:
    before = process_now()["cpu_seconds"]
    work = "import sys\nsum(range(10_000_000))\nprint(flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", work]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdout.readline()
        own = time.process_time()
        running = process_now()["cpu_seconds"]
        worker.stdin.close()
    assert running > before
    assert process_now()["cpu_seconds"] > before + 0.05
    assert running - own > 0.05


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_admin_port_gives_the_watchs_status() -> None:
    admin = admin_of()
    async with anyio.create_task_group() as tasks, serving(admin.app) as address:
        tasks.start_soon(admin.watch.keep)
        with anyio.fail_after(10):
            while not admin.watch.live_view.view()["is_up"]:
                await anyio.lowlevel.checkpoint()
        status = (await ask(address, "/status")).json
        tasks.cancel_scope.cancel()
    assert status["process"]["pid"] == os.getpid()
    assert status["recent_dead_letters"] == status["recent_errors"] == []
