"""Reads the config again and has the pipeline go on by it: all of it, or nothing of it.

What takes time or can fail is done beside the event loop and before anything is changed. It is bounded in time, and
one reload is at work at a time. A config that names what can't change while the pipeline runs changes nothing.
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
from streambatch.pipeline.reload import Settings
from streambatch.scoring.transform import Transform

RELOAD_SECONDS = 60.0
"""How long a new config, with its model, may take to load."""


@dataclass(frozen=True, kw_only=True)
class Reloaded:
    """What came of a reload. problems: why it failed. model: whether it is another one, or should have been."""

    ok: bool
    changes: Sequence[Change] = ()
    problems: Sequence[str] = ()
    model: bool = False
    config_digest: str
    model_digest: str | None
    seconds: float = 0.0


class Told(Protocol):
    """Who is told before and after a reload, on the event loop."""

    def reloading(self) -> None: ...

    def reloaded(self, result: Reloaded, assembly: Assembly) -> None:
        """`assembly` is what the pipeline now goes by: another one only if the reload went well."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    assembly: Assembly
    settings: Settings
    transform: Transform
    changes: list[Change]


class Reloader:
    """Reloads one pipeline's config. `keep` runs along with the pipeline; all of it belongs on the event loop."""

    def __init__(
        self,
        assembly: Assembly,
        pipeline: Pipeline,
        told: Told,
        *,
        overrides: Sequence[str] = (),
        seconds_max: float = RELOAD_SECONDS,
    ) -> None:
        self._running, self._pipeline, self._told, self._overrides = assembly, pipeline, told, tuple(overrides)
        self._seconds_max = seconds_max
        self._turn = anyio.Lock()
        self._asked = anyio.Event()
        self._log: Any = structlog.get_logger()
        self._is_loading = False

    def ask(self) -> None:
        """Have the config reloaded soon; several that ask before it begins get one."""
        self._asked.set()

    async def keep(self) -> None:
        """Reload whenever somebody asks, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            async with self._turn:
                await self._reload("signal")

    async def reload(self) -> Reloaded | None:
        """Reload now. Returns None while another reload is at work."""
        try:
            self._turn.acquire_nowait()
        except anyio.WouldBlock:
            return None
        try:
            return await self._reload("http")
        finally:
            self._turn.release()

    async def _reload(self, asked_by: str) -> Reloaded:
        clock = self._pipeline.clock
        started = clock.monotonic()
        self._log.info("reloading", config=str(self._running.config.path), asked_by=asked_by)
        self._told.reloading()
        try:
            prepared = await self._load()
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
            is_expected = isinstance(error, StreambatchError)
            self._log.error("reload_failed", error=str(error), exc_info=None if is_expected else error)
        self._told.reloaded(result, self._running)
        return result

    def _result(self, ok: bool, **more: Any) -> Reloaded:
        running = self._running
        return Reloaded(ok=ok, config_digest=running.config.digest, model_digest=running.model_digest, **more)

    def _check_running(self) -> None:
        state = self._pipeline.snapshot().state
        if state != "running":
            raise _NotNow(f"the pipeline is {state}: a config is reloaded while it runs")

    async def _load(self) -> _Prepared:
        """Prepare all that the new config asks for, in a thread of its own that may be left behind."""
        self._check_running()
        if self._is_loading:
            raise _NotNow("what an earlier reload began to load is still loading")
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[_Prepared] = loop.create_future()

        def settle(result: _Prepared | Exception) -> None:
            self._is_loading = False
            if loaded.done():
                return  # nobody waits for it any more
            if isinstance(result, Exception):
                loaded.set_exception(result)
            else:
                loaded.set_result(result)

        def work() -> None:
            result = self._outcome()
            with contextlib.suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(settle, result)

        self._is_loading = True
        threading.Thread(target=work, name="streambatch-reload", daemon=True).start()
        with anyio.move_on_after(self._seconds_max):
            return await loaded
        raise _NotNow(f"it took longer than {self._seconds_max:g} s to load")

    def _outcome(self) -> _Prepared | Exception:
        try:
            return self._prepared()
        except Exception as error:
            return error
        except BaseException as error:  # a module that wants the process to exit
            return _NotNow(f"loading it raised {type(error).__name__}: {error}")

    def _prepared(self) -> _Prepared:
        """Load, check and try the new config. Changes nothing."""
        running = self._running
        path = running.config.path
        config = load_config(path, overrides=self._overrides)
        changes = changes_between(running.config, config)
        check_live(changes, str(path))
        assembly = Assembly(config, running=running)
        settings = assembly.settings()
        return _Prepared(
            assembly=assembly, settings=settings, transform=self._pipeline.transform_of(settings), changes=changes
        )


class _NotNow(StreambatchError):
    """A reload can't be done as things are."""


def _is_of_model(error: Exception) -> bool:
    if isinstance(error, ConfigError):
        return any(problem.key.partition(".")[0] == "model" for problem in error.problems)
    return isinstance(error, ModelError | ShapeError)
