"""Read the config again and apply all of it to the running pipeline, or nothing.

Everything that takes time or can fail is done in a thread, before anything is changed, and within a time limit. One
reload runs at a time. A config with a change that needs a restart changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import structlog

from streambatch.config.assemble import Assembly, load_config
from streambatch.config.changes import Change, changes_between, check_live
from streambatch.core.errors import ConfigError, ModelError, ShapeError, StreambatchError
from streambatch.pipeline.pipeline import Pipeline
from streambatch.pipeline.settings import Settings
from streambatch.scoring.transform import Transform

RELOAD_SECONDS = 60.0
"""Time that a new config may take to load, with its model."""


@dataclass(frozen=True, kw_only=True)
class ReloadResult:
    """The result of a reload. problems: why it failed. model: whether the model was replaced, or was to be."""

    ok: bool
    changes: Sequence[Change] = ()
    problems: Sequence[str] = ()
    model: bool = False
    config_digest: str
    model_digest: str | None
    seconds: float = 0.0


class ReloadListener(Protocol):
    """Called before and after each reload, on the event loop."""

    def reloading(self) -> None: ...

    def reloaded(self, result: ReloadResult, assembly: Assembly) -> None:
        """`assembly` is what the pipeline now runs with: the new one if the reload went well, else the old one."""
        ...


@dataclass(frozen=True, kw_only=True)
class _LoadedConfig:
    assembly: Assembly
    settings: Settings
    transform: Transform
    changes: list[Change]


class Reloader:
    """Reloads the config of one pipeline. `keep` must run beside the pipeline; call all methods on the event loop."""

    def __init__(
        self,
        assembly: Assembly,
        pipeline: Pipeline,
        listener: ReloadListener,
        *,
        overrides: Sequence[str] = (),
        seconds_max: float = RELOAD_SECONDS,
    ) -> None:
        self._running, self._pipeline, self._listener, self._overrides = assembly, pipeline, listener, tuple(overrides)
        self._seconds_max = seconds_max
        self._turn = anyio.Lock()
        # An event and no Signal: it is to stay set while a reload is at work that began before.
        self._requested = anyio.Event()
        self._log: Any = structlog.get_logger()
        self._is_loading = False

    def request(self) -> None:
        """Request a reload. Several requests before it begins get one."""
        self._requested.set()

    async def keep(self) -> None:
        """Reload after each request, until cancelled."""
        while True:
            await self._requested.wait()
            self._requested = anyio.Event()
            async with self._turn:
                await self._reload("signal")

    async def reload(self) -> ReloadResult | None:
        """Reload now and return the result; None while another reload is running."""
        try:
            self._turn.acquire_nowait()
        except anyio.WouldBlock:
            return None
        try:
            return await self._reload("http")
        finally:
            self._turn.release()

    async def _reload(self, requested_by: str) -> ReloadResult:
        clock = self._pipeline.clock
        started = clock.monotonic()
        self._log.info("reloading", config=str(self._running.config.path), asked_by=requested_by)
        self._listener.reloading()
        try:
            prepared = await self._load()
            # It may have ended while the config was loaded.
            self._check_running()
            self._pipeline.reload(prepared.settings, prepared.transform)
            is_new = prepared.assembly.model is not self._running.model
            self._running = prepared.assembly
            result = self._result(True, changes=prepared.changes, model=is_new, seconds=clock.monotonic() - started)
            self._log.info(
                "reloaded",
                changed=[change.key for change in result.changes],
                model_replaced=is_new,
                digest=result.config_digest,
                seconds=round(result.seconds, 3),
            )
        except Exception as error:
            problems, seconds = str(error).splitlines() or [type(error).__name__], clock.monotonic() - started
            result = self._result(False, problems=problems, model=_is_of_model(error), seconds=seconds)
            # Errors of streambatch explain themselves; others need a traceback.
            is_expected = isinstance(error, StreambatchError)
            self._log.error("reload_failed", error=str(error), exc_info=None if is_expected else error)
        self._listener.reloaded(result, self._running)
        return result

    def _result(self, ok: bool, **more: Any) -> ReloadResult:
        running = self._running
        return ReloadResult(ok=ok, config_digest=running.config.digest, model_digest=running.model_digest, **more)

    def _check_running(self) -> None:
        state = self._pipeline.snapshot().state
        if state != "running":
            raise _NotNow(f"the pipeline is {state}: a config is reloaded while it runs")

    async def _load(self) -> _LoadedConfig:
        """Build everything that the new config needs, in a thread of its own."""
        self._check_running()
        if self._is_loading:
            raise _NotNow("what an earlier reload began to load is still loading")
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[_LoadedConfig] = loop.create_future()

        def settle(result: _LoadedConfig | Exception) -> None:
            self._is_loading = False
            if loaded.done():
                return  # the time limit has passed
            if isinstance(result, Exception):
                loaded.set_exception(result)
            else:
                loaded.set_result(result)

        def work() -> None:
            result = self._build_or_error()
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(settle, result)

        self._is_loading = True
        # A thread can't be cancelled. As a daemon thread one that hangs in a model's loader holds up no exit, and no
        # slot of anyio's pool.
        threading.Thread(target=work, name="streambatch-reload", daemon=True).start()
        with anyio.move_on_after(self._seconds_max):
            return await loaded
        # The thread goes on: until it ends, no other reload may begin, so that threads don't pile up.
        raise _NotNow(f"it took longer than {self._seconds_max:g} s to load")

    def _build_or_error(self) -> _LoadedConfig | Exception:
        try:
            return self._build()
        except Exception as error:
            return error
        except BaseException as error:  # such as SystemExit from a module that is imported
            return _NotNow(f"loading it raised {type(error).__name__}: {error}")

    def _build(self) -> _LoadedConfig:
        """Load the new config, compare it, and try its steps and model. Changes nothing."""
        running = self._running
        path = running.config.path
        config = load_config(path, overrides=self._overrides)
        changes = changes_between(running.config, config)
        check_live(changes, str(path))
        assembly = Assembly(config, running=running)
        settings = assembly.settings()
        return _LoadedConfig(
            assembly=assembly, settings=settings, transform=self._pipeline.transform_of(settings), changes=changes
        )


class _NotNow(StreambatchError):
    """A reload can't be done at the moment."""


def _is_of_model(error: Exception) -> bool:
    if isinstance(error, ConfigError):
        return any(problem.key.partition(".")[0] == "model" for problem in error.problems)
    return isinstance(error, ModelError | ShapeError)
