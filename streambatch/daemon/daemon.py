"""Run one pipeline as a long-lived process: hold its state, handle signals, serve the admin port, write a report.

SIGTERM or SIGINT stops gracefully, a second one hard; SIGHUP reloads the config. The process always ends with one of
four exit codes, with its log on stderr.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

import anyio
import msgspec
import structlog
from anyio import to_thread
from anyio.abc import TaskGroup, TaskStatus
from prometheus_client import CollectorRegistry, ProcessCollector

from streambatch.config.assemble import Assembly, load_config
from streambatch.config.config import Config
from streambatch.core.clock import Clock, SystemClock
from streambatch.core.errors import (
    ChangedOutputError,
    ChangedReadingError,
    ConfigError,
    ConfigProblem,
    DamagedStateError,
    HeldError,
    StreambatchError,
    first_cause,
)
from streambatch.core.events import Observers
from streambatch.core.report import RunReport, Snapshot
from streambatch.daemon.notify import Notifier
from streambatch.durability.manifest import code_revision
from streambatch.durability.store.store import StateStore
from streambatch.observe import Metrics, MetricsObserver, sample_loop_lag
from streambatch.observe.drift import Drift
from streambatch.observe.logs import LogObserver, LogOptions, configure_logs, stderr_is_terminal
from streambatch.observe.tracing import Tracing
from streambatch.ops.reloading import Reloader, ReloadResult
from streambatch.pipeline.pipeline import Pipeline
from streambatch.storage.folder import StateFolder
from streambatch.version import __version__
from streambatch.web.recent import RecentProblems
from streambatch.web.watch import Watch

DONE, FAILED, REFUSED, UNFINISHED = 0, 1, 2, 3
"""Exit codes: input ended or clean stop; failed; usage, config or held state; stopped with work unfinished."""
_REFUSALS = (ConfigError, HeldError, ChangedReadingError, ChangedOutputError, DamagedStateError)
PROGRESS_SECONDS = 0.25
FULL_COLLECTIONS_EVERY = 100
"""Collections of the middle generation before a full one."""


class ProgressDisplay(Protocol):
    """Shows the progress of a pipeline; entered while it runs."""

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...

    def update(self, snapshot: Snapshot) -> None: ...


def run(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    report: Path | None = None,
    progress: Callable[[Config], ProgressDisplay | None] = lambda config: None,
    logs: LogOptions | None = None,
) -> int:
    """Run a config's pipeline to the end of its input or until stopped, and return the exit code.

    report: file for the run's report. progress: returns an object that shows progress, or None.
    Raises StreambatchError for an error at its start; later errors are logged.
    """
    config = load_config(path, overrides=overrides)
    _check_report(report)
    messages = configure_logs(is_terminal=stderr_is_terminal(), options=logs)
    with StateFolder(config.state_dir) as folder:
        daemon = Daemon(Assembly(config), folder, progress(config), overrides=overrides, messages=messages)
        code = anyio.run(daemon.run)
        if report is not None and daemon.pipeline.report is not None:
            # A report that can't be written is a failure, but doesn't hide a worse one.
            code = max(code, _write_report(report, daemon.pipeline.report))
        return code


class Watchers:
    """What observes a pipeline for people and programs beside it: metrics, logs, traces, drift, status, systemd."""

    def __init__(self, config: Config, clock: Clock, messages: Mapping[str, int] | None) -> None:
        """messages: log lines by level. Raises ConfigError if an extra that the config needs is missing."""
        self.clock = clock
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.metrics = Metrics(
            self.registry,
            revision=code_revision() or "unknown",
            config_digest=config.digest,
            log_messages=messages,
            clock=clock,
        )
        self.counting, self.recent = MetricsObserver(), RecentProblems(clock)
        self.notifier = Notifier(drain_seconds=config.delivery.drain_timeout, clock=clock)
        self.tracing = tracing_of(config, clock)
        self.drift = drift_of(config, clock)

    def observer(self) -> Observers:
        """Return the observer that passes the pipeline's events on to all of them."""
        traced = () if self.tracing is None else (self.tracing,)
        sampled = () if self.drift is None else (self.drift,)
        return Observers(self.counting, self.recent, LogObserver(self.clock), self.notifier, *traced, *sampled)

    def attach(self, pipeline: Pipeline, config: Config, model_digest: str | None) -> Watch:
        """Serve the metrics of the pipeline that was built with `observer`, and return its status."""
        if self.tracing is not None:
            self.tracing.run_id, self.tracing.model_digest = pipeline.run_id, model_digest or ""
        self.metrics.attach(
            pipeline,
            self.counting,
            model_format=config.model.type,
            model_digest=model_digest or "",
            drift=self.drift,
            tracing=self.tracing,
        )
        return Watch(
            pipeline,
            self.counting,
            self.recent,
            clock=self.clock,
            config=config.effective,
            config_digest=config.digest,
            model_digest=model_digest or None,
            state_dir=config.state_dir,
        )


class Daemon:
    """A pipeline, the tasks that run beside it, and the exit code."""

    def __init__(
        self,
        assembly: Assembly,
        folder: StateFolder,
        progress: ProgressDisplay | None = None,
        *,
        overrides: Sequence[str] = (),
        messages: Mapping[str, int] | None = None,
    ) -> None:
        config = self._config = assembly.config
        self._progress = progress
        self._effective = dict(config.effective)
        """What `/config` shows: changed in place by a reload, since the app holds it."""
        self._had_terminal = stderr_is_terminal()
        self._log: Any = structlog.get_logger()
        self._watchers = Watchers(config, SystemClock(), messages)
        self.pipeline: Pipeline = assembly.pipeline(self._watchers.observer(), folder)
        self._watch = self._watchers.attach(self.pipeline, config, assembly.model_digest)
        self._reloader = Reloader(assembly, self.pipeline, self, overrides=overrides)

    def reloading(self) -> None:
        """See reloading.ReloadListener."""
        self._watchers.notifier.reloading()

    def reloaded(self, result: ReloadResult, assembly: Assembly) -> None:
        """See reloading.ReloadListener."""
        watchers, config, digest = self._watchers, assembly.config, result.model_digest
        watchers.metrics.config_reloaded(ok=result.ok, digest=config.digest)
        if result.model:
            watchers.metrics.model_reloaded(
                self.pipeline.name, ok=result.ok, model_format=config.model.type, model_digest=digest or ""
            )
        if result.ok:
            self._effective.clear()
            self._effective.update(config.effective)
            self._watch.reloaded(config.effective, config.digest, digest)
            if watchers.tracing is not None:
                watchers.tracing.model_digest = digest or ""
            watchers.notifier.drain_seconds = config.delivery.drain_timeout
        watchers.notifier.reloaded()

    async def run(self) -> int:
        """Run the pipeline and return the exit code; errors are logged, not raised."""
        self._log.info(
            "starting",
            version=__version__,
            pipeline=self.pipeline.name,
            run=self.pipeline.run_id,
            pid=os.getpid(),
            config=str(self._config.path),
            digest=self._config.digest,
            state_dir=str(self._config.state_dir),
        )
        try:
            await self._run_with_tasks()
        except Exception as error:
            return self._failed(first_cause(error))
        finally:
            if self._watchers.tracing is not None:
                await to_thread.run_sync(self._watchers.tracing.close)
        return self._ended()

    async def _run_with_tasks(self) -> None:
        showing: AbstractContextManager[object] = self._progress or nullcontext()
        with showing:
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._handle_signals)
                await self._start_tasks(tasks)
                _settle_garbage_collection()
                await self.pipeline.run()
                tasks.cancel_scope.cancel()

    async def _start_tasks(self, tasks: TaskGroup) -> None:
        if self._config.http.listen != "off":
            from streambatch.web.app import create_app
            from streambatch.web.lifecycle import lifecycle_routes
            from streambatch.web.page_events import EventFeed
            from streambatch.web.server import serve

            feed = EventFeed(self._watch)
            app = create_app(
                pipeline=self.pipeline,
                registry=self._watchers.registry,
                effective_config=self._effective,
                watch=self._watch,
                feed=feed,
                listen=self._config.http.listen,
                token=self._config.http.token,
                more=lifecycle_routes(self._reloader.reload) if self._config.http.lifecycle else (),
            )
            # Before the pipeline: probes must be answered while an output makes it wait.
            address = await tasks.start(serve, app, self._config.http.listen)
            self._log.info("admin_listening", url=f"http://{address}")
            tasks.start_soon(sample_loop_lag, self._watchers.metrics, self._watchers.clock)
            tasks.start_soon(self._watch.keep)
            tasks.start_soon(feed.run)
            if self._watchers.drift is not None:
                tasks.start_soon(self._watchers.drift.keep)
        tasks.start_soon(self._watchers.notifier.keep, self.pipeline)
        tasks.start_soon(self._reloader.keep)
        for source in self.pipeline.sources:
            tasks.start_soon(self._log_listening, source.name)
        if self._progress is not None:
            tasks.start_soon(self._show, self._progress)

    async def _handle_signals(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            is_first = True
            async for number in signals:
                # A closed terminal sends SIGHUP too, and then means a stop.
                if number == signal.SIGHUP and not self._has_lost_terminal():
                    self._reloader.request()
                    continue
                self._log.info("stopping" if is_first else "stopping_hard", signal=signal.Signals(number).name)
                if is_first:
                    self._watchers.notifier.stopping()
                (self.pipeline.stop if is_first else self.pipeline.abort)()
                is_first = False

    def _has_lost_terminal(self) -> bool:
        """Whether a SIGHUP means that the terminal was closed, and not a request to reload."""
        return self._had_terminal and not stderr_is_terminal()

    async def _log_listening(self, source: str) -> None:
        address = await self.pipeline.listening(source)
        if address is not None:
            self._log.info("listening", source=source, address=address)

    async def _show(self, progress: ProgressDisplay) -> None:
        try:
            while True:
                progress.update(self.pipeline.snapshot())
                await anyio.sleep(PROGRESS_SECONDS)
        finally:
            progress.update(self.pipeline.snapshot())

    def _ended(self) -> int:
        report = self.pipeline.report
        assert report is not None
        self._log.info("stopped", **_summary(report))
        if report.ended == "input_ended" and not report.records["received"] + report.records["recovered"]:
            self._log_why_nothing_came()
        # Unacked records in files and spools are no loss: the next run reads them.
        safe = self.pipeline.safe_records
        if safe:
            self._log.info("left_to_next_run", records=safe, where="in files and spools, to be read at the next start")
        left = report.records["unacked"] - safe
        if not left:
            return DONE
        self._log.warning("unfinished", records=left, where=self._where_left())
        return UNFINISHED

    def _log_why_nothing_came(self) -> None:
        with StateStore.read(self._config.state_dir) as store:
            earlier = [run.run for run in store.runs() if run.counts.received]
        if earlier:
            hint = "`streambatch state reset` has all of it read again"
            self._log.info("nothing_new", read_by=earlier[-1], hint=hint)

    def _where_left(self) -> str:
        lost = [source.name for source in self.pipeline.sources if not self.pipeline.is_resumable(source.name)]
        again = "those from files and spools are safe and read again at the next start"
        return f"{again}; those from {', '.join(lost)} are lost" if lost else again

    def _failed(self, error: BaseException) -> int:
        report = self.pipeline.report
        is_expected = isinstance(error, StreambatchError)
        summary = {} if report is None else {**_summary(report), "error": str(error)}
        self._log.error("failed", **(summary or {"error": str(error)}), exc_info=None if is_expected else error)
        return REFUSED if isinstance(error, _REFUSALS) else FAILED


def drift_of(config: Config, clock: Clock) -> Drift | None:
    """Return the drift sampler if it is enabled and an admin port serves it. Raises ConfigError without its extra."""
    return Drift(config.drift, config.record, clock) if config.drift.enabled and config.http.listen != "off" else None


def tracing_of(config: Config, clock: Clock) -> Tracing | None:
    """Return the tracer if it is enabled; the caller closes it. Raises ConfigError without its extra."""
    return Tracing(config.otel, config.name, clock) if config.otel.enabled else None


def _settle_garbage_collection() -> None:
    """Exclude the objects made at start from garbage collection, and make full collections rare."""
    # Measured with batches of 64, of which many wait for their ack: the longest pause falls from 38 to 1.5 ms, the time
    # spent on collecting from 5 % to 2 %.
    young, middle, _ = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(young, middle, FULL_COLLECTIONS_EVERY)


def _summary(report: RunReport) -> dict[str, Any]:
    return {
        "ended": report.ended,
        "seconds": round(report.seconds, 3),
        **report.records,
        "records_per_second": round(report.records_per_second),
        "p99_seconds": round(report.latency_seconds["p99"], 4),
    }


def _check_report(path: Path | None) -> None:
    """Raise ConfigError if the report can't be written: at the start, not after hours of running."""
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK | os.X_OK)):
        problem = ConfigProblem("--report", repr(str(path)), "a file in a folder that is there and can be written")
        raise ConfigError([problem])


def _write_report(path: Path, report: RunReport) -> int:
    """Write the report to a temporary file, then rename it, so that it is never there in part. Returns an exit code."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(report.as_dict()), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        structlog.get_logger().error("report_failed", path=str(path), error=str(error))
        return FAILED
    return DONE
