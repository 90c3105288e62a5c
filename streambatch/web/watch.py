"""The full status of a pipeline: its snapshot, which stage limits it, its last errors and runs.

Everything is read from what the pipeline and its observers hold already: the pipeline never waits for its watcher.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.to_thread

from streambatch.core.clock import Clock
from streambatch.core.errors import StreambatchError
from streambatch.core.report import Snapshot
from streambatch.durability.store.store import StateStore
from streambatch.observe import MetricsObserver
from streambatch.ops.live_view import LiveView
from streambatch.ops.verdict import judge
from streambatch.version import __version__
from streambatch.web.process import process_now
from streambatch.web.recent import RecentProblems
from streambatch.web.status import date_of, status_of, work_of

SAMPLE_SECONDS = 1.0
RUNS_SECONDS = 30.0
"""Time between two looks at the stored runs."""
RUNS_KEPT = 10
_SETTINGS = {
    "batch": ("max_records", "max_bytes", "max_wait", "target_latency"),
    "workers": ("executor", "count"),
    "queue": ("max_records", "max_bytes"),
    "limits": ("memory",),
    "delivery": ("checkpoint_interval",),
    "http": ("listen",),
}
"""Options that a verdict or the live page names. None of them can hold a secret."""


class WatchedPipeline(Protocol):
    """A pipeline, as far as its watcher needs it."""

    def snapshot(self) -> Snapshot: ...


class Watch:
    """The status of one pipeline. Its methods must be called on the pipeline's event loop.

    `live_view` gets a status every SAMPLE_SECONDS while `keep` runs. config: the effective one, for the settings shown.
    state_dir: the folder with past runs, or None.
    """

    def __init__(
        self,
        pipeline: WatchedPipeline,
        counting: MetricsObserver,
        recent: RecentProblems,
        *,
        clock: Clock,
        config: Mapping[str, Any],
        config_digest: str | None = None,
        model_digest: str | None = None,
        state_dir: Path | None = None,
    ) -> None:
        self._pipeline, self._counting, self._recent, self._clock = pipeline, counting, recent, clock
        self._about = _about(config, config_digest, model_digest)
        self._state_dir = state_dir
        self._runs: list[dict[str, Any]] | None = None
        self._verdict: dict[str, Any] | None = None
        self.live_view = LiveView()

    def reloaded(self, config: Mapping[str, Any], config_digest: str | None, model_digest: str | None) -> None:
        """Show another config and model from now on."""
        self._about = _about(config, config_digest, model_digest)

    def status(self) -> dict[str, Any]:
        """Return the current status, with the verdict of the last sample."""
        snapshot = self._pipeline.snapshot()
        status = {
            **status_of(snapshot),
            **self._about,
            **work_of(snapshot, self._counting),
            "process": process_now(),
            "recent_dead_letters": self._recent.dead_letters,
            "recent_errors": self._recent.errors,
            "verdict": self._verdict,
        }
        if self._runs is not None:
            status["runs"] = self._runs
        return status

    async def keep(self) -> None:
        """Take a sample every second and read the past runs every RUNS_SECONDS, until cancelled."""
        async with anyio.create_task_group() as tasks:
            if self._state_dir is not None:
                tasks.start_soon(self._keep_runs, self._state_dir)
            while True:
                self.sample()
                await anyio.sleep(SAMPLE_SECONDS)

    def sample(self) -> None:
        """Add a status to `live_view` and judge which stage limits."""
        status = self.status()
        self.live_view.update(status, self._clock.wall())
        verdict = judge(self.live_view.load)
        self._verdict = status["verdict"] = None if verdict is None else verdict.as_dict()

    async def _keep_runs(self, state_dir: Path) -> None:
        while True:
            # In a thread, since SQLite waits for the disk.
            self._runs = await anyio.to_thread.run_sync(past_runs, state_dir)
            await anyio.sleep(RUNS_SECONDS)


def _about(config: Mapping[str, Any], config_digest: str | None, model_digest: str | None) -> dict[str, Any]:
    return {
        "version": __version__,
        "config_digest": config_digest,
        "model": {"format": config["model"]["type"], "digest": model_digest},
        "settings": settings_of(config),
    }


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an effective config that a verdict or the page may name."""
    settings: dict[str, Any] = {
        section: {key: config[section][key] for key in keys if key in config[section]}
        for section, keys in _SETTINGS.items()
        if section in config
    }
    for section in ("source", "sink"):
        settings[section] = {
            name: {key: part[key] for key in ("type", "format", "compression") if key in part}
            for name, part in config[section].items()
        }
    return settings


def past_runs(state_dir: Path) -> list[dict[str, Any]] | None:
    """Return a summary of the last runs, the newest first; None if the state can't be read. Blocks on the disk."""
    try:
        with StateStore.read(state_dir) as state:
            runs = state.runs()
    except (StreambatchError, OSError):  # not stored yet, or damaged, which the pipeline reports itself
        return None
    return [
        {
            "run": run.run,
            "started_at": date_of(run.started),
            "ended_at": None if run.ended is None else date_of(run.ended),
            "why": run.why,
            "error": run.error,
            "records": run.counts.as_records(),
        }
        for run in reversed(runs[-RUNS_KEPT:])
    ]
