"""Watches a pipeline from beside it: its full status, which stage limits it, its last errors and runs.

Everything is put together from what is there; the pipeline never waits for a watcher.
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
from streambatch.ops.live import Live
from streambatch.ops.verdict import judge
from streambatch.version import __version__
from streambatch.web.process import process_now
from streambatch.web.recent import Recent
from streambatch.web.status import date_of, status_of, work_of

SAMPLE_SECONDS = 1.0
RUNS_SECONDS = 30.0
"""How old the run history may get."""
RUNS_KEPT = 10
_SETTINGS = {
    "batch": ("max_records", "max_bytes", "max_wait", "target_latency"),
    "workers": ("executor", "count"),
    "queue": ("max_records", "max_bytes"),
    "limits": ("memory",),
    "delivery": ("checkpoint_interval",),
    "http": ("listen",),
}
"""Options that say how a pipeline may be turned; none of them can hold a secret."""


class Watched(Protocol):
    """A pipeline, as far as its watcher sees it."""

    def snapshot(self) -> Snapshot: ...


class Watch:
    """The status of one pipeline; call it on the pipeline's event loop.

    live: fed once every SAMPLE_SECONDS while `keep` runs. config: the effective one, for the settings that are shown.
    state_dir: where past runs are; None without.
    """

    def __init__(
        self,
        pipeline: Watched,
        counting: MetricsObserver,
        recent: Recent,
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
        self.live = Live()

    def reloaded(self, config: Mapping[str, Any], config_digest: str | None, model_digest: str | None) -> None:
        """Learn what the pipeline goes by from now on."""
        self._about = _about(config, config_digest, model_digest)

    def status(self) -> dict[str, Any]:
        """Return the status of this moment, with the verdict of the last sample."""
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
        """Take a sample every second and learn of past runs now and then, until cancelled."""
        async with anyio.create_task_group() as tasks:
            if self._state_dir is not None:
                tasks.start_soon(self._keep_runs, self._state_dir)
            while True:
                self.sample()
                await anyio.sleep(SAMPLE_SECONDS)

    def sample(self) -> None:
        """Feed `live` and judge which stage limits."""
        status = self.status()
        self.live.update(status, self._clock.wall())
        verdict = judge(self.live.load)
        self._verdict = status["verdict"] = None if verdict is None else verdict.as_dict()

    async def _keep_runs(self, state_dir: Path) -> None:
        while True:
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
    """Return what of an effective config a verdict or a page may name."""
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
    """Return the last runs in short, the newest first; None where state can't be read. Blocks on the disk."""
    try:
        with StateStore.read(state_dir) as state:
            runs = state.runs()
    except (StreambatchError, OSError):  # not stored yet, or damaged: whoever holds the state says so
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
