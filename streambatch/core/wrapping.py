"""Sources and sinks of other people that are no subclass of ours, wrapped once where they come in.

What such an object can do is found out here, by the names it has, and nowhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from streambatch.core.checkpoints import CommitMark, OutputMark, PartitionNotes, SavedPartition
from streambatch.core.errors import OptionError
from streambatch.core.intake import Intake
from streambatch.core.parts import Claim, Reader, Sink, Site, Source, Writer


class RunningSource(Protocol):
    """A source that is options and reader in one object. What else a `Reader` has, it may have too."""

    @property
    def name(self) -> str: ...

    @property
    def format(self) -> str: ...

    @property
    def is_finite(self) -> bool: ...

    async def run(self, intake: Intake) -> None:
        """See `Reader.run`."""
        ...


class WritingSink(Protocol):
    """A sink that is options and writer in one object. What else a `Writer` has, it may have too."""

    @property
    def name(self) -> str: ...

    @property
    def format(self) -> str: ...

    async def open(self, header: bytes) -> None:
        """See `Writer.open`."""
        ...

    async def write(self, payload: bytes) -> None:
        """See `Writer.write`."""
        ...

    async def sync(self) -> int:
        """See `Writer.sync`."""
        ...

    async def close(self) -> None:
        """See `Writer.close`."""
        ...


_SOURCE = "a source, such as FileSource('in/*.jsonl'), or an object with name, format, is_finite and run(intake)"
_SINK = "a sink, such as FileSink('scores.jsonl'), or an object with name, format, open, write, sync and close"


def as_source(source: Source | RunningSource) -> Source:
    """Return a source; one that runs itself is wrapped. Raises OptionError for any other object."""
    if isinstance(source, Source):
        return source
    _check_is_part(source, "sources", _SOURCE)
    return WrappedSource(source)


def as_sink(sink: Sink | WritingSink) -> Sink:
    """Return a sink; one that writes itself is wrapped. Raises OptionError for any other object."""
    if isinstance(sink, Sink):
        return sink
    _check_is_part(sink, "sink", _SINK)
    return WrappedSink(sink)


def _check_is_part(part: object, option: str, allowed: str) -> None:
    # A class has all the names that its instances have, and would fail only when the pipeline runs.
    if isinstance(part, type):
        raise OptionError(option, f"the class {part.__qualname__} itself", allowed)
    if missing := [name for name in ("name", "format") if not isinstance(getattr(part, name, None), str)]:
        raise OptionError(option, f"an object of type {type(part).__qualname__} without {', '.join(missing)}", allowed)


class WrappedSource(Source):
    """A source that is its own reader."""

    def __init__(self, source: Any) -> None:
        self.wrapped = source
        self.name, self.format = source.name, source.format
        self.when_full = getattr(source, "when_full", "block")
        self.reply = bool(getattr(source, "reply", False))
        self.spool = getattr(source, "spool", None)
        self.dedupe_window = getattr(source, "dedupe_window", None)
        self.max_record_bytes = getattr(source, "max_record_bytes", None)

    @property
    def is_finite(self) -> bool:
        return bool(self.wrapped.is_finite)

    def named(self, name: str) -> Source:
        return WrappedSource(dataclasses.replace(self.wrapped, name=name))

    def build(self, site: Site) -> Reader:
        """Return a reader of its own for each run, if the source is a dataclass."""
        return WrappedReader(_fresh(self.wrapped))

    def claims(self) -> Iterable[Claim]:
        """Return what it claims itself, or else the paths that an option `path` names."""
        if (claims := getattr(self.wrapped, "claims", None)) is not None:
            return list(claims())
        path = getattr(self.wrapped, "path", None) or ()
        return [Claim("input", "path", str(one)) for one in ([path] if isinstance(path, str) else path)]

    def where(self) -> str:
        return str(getattr(self.wrapped, "listen", None) or getattr(self.wrapped, "path", "standard input"))

    def reading(self) -> Mapping[str, Any]:
        """Return its options that decide how bytes become records."""
        found = {name: getattr(self.wrapped, name, None) for name in ("format", "framing", "compression")}
        return {name: value for name, value in found.items() if value is not None}


class WrappedReader(Reader):
    """The running part of a source that is its own reader."""

    def __init__(self, source: Any) -> None:
        self.name, self.wrapped = source.name, source
        self.is_resumable = hasattr(source, "resume") and hasattr(source, "notes")
        self.counts_recovered = bool(getattr(source, "counts_recovered", False))
        # Looked up once, since these are called again and again.
        self._acked = getattr(source, "acked", None)
        self._backlog = getattr(source, "backlog", None)
        self._listening = getattr(source, "listening", None)

    async def run(self, intake: Intake) -> None:
        await self.wrapped.run(intake)

    def resume(self, saved: Mapping[str, SavedPartition]) -> None:
        if self.is_resumable:
            self.wrapped.resume(saved)

    def notes(self) -> Mapping[str, PartitionNotes | None]:
        return self.wrapped.notes() if self.is_resumable else {}

    def acked(self, positions: Mapping[str, int]) -> None:
        if self._acked is not None:
            self._acked(positions)

    def backlog(self) -> Any:
        return self._backlog() if self._backlog is not None else None

    @property
    def address(self) -> str | None:
        return getattr(self.wrapped, "bound", None)

    async def listening(self) -> str | None:
        return await self._listening() if self._listening is not None else None


class WrappedSink(Sink):
    """A sink that is its own writer."""

    def __init__(self, sink: Any) -> None:
        self.wrapped = sink
        self.name, self.format = sink.name, sink.format

    def build(self, site: Site) -> Writer:
        """Return a writer of its own for each run, if the sink is a dataclass."""
        return WrappedWriter(_fresh(self.wrapped), site)

    def claims(self) -> Iterable[Claim]:
        """Return what it claims itself, or else the file that an option `path` names."""
        if (claims := getattr(self.wrapped, "claims", None)) is not None:
            return list(claims())
        path = getattr(self.wrapped, "path", None)
        return [] if path is None else [Claim("output", "path", str(path))]

    def describe(self) -> Mapping[str, Any]:
        return {"name": self.name, "path": getattr(self.wrapped, "path", None), "format": self.format}


class WrappedWriter(Writer):
    """The running part of a sink that is its own writer."""

    def __init__(self, sink: Any, site: Site) -> None:
        self.name, self.wrapped = sink.name, sink
        self.is_rewindable = hasattr(sink, "restore") and hasattr(sink, "mark")
        self.is_identified = hasattr(sink, "write_batch")
        # All or none: a sink that is segmented is asked for each of them.
        self.is_segmented = all(hasattr(sink, name) for name in ("durable_writes", "close_due", "finish"))
        if self.is_segmented and hasattr(sink, "timed_by"):
            sink.timed_by(site.clock)

    async def open(self, header: bytes) -> None:
        await self.wrapped.open(header)

    async def write(self, payload: bytes) -> None:
        await self.wrapped.write(payload)

    async def write_batch(self, payload: bytes, batch_id: str) -> None:
        await self.wrapped.write_batch(payload, batch_id)

    async def sync(self) -> int:
        length: int = await self.wrapped.sync()
        return length

    async def close(self) -> None:
        await self.wrapped.close()

    def restore(self, mark: OutputMark | None, commit: CommitMark) -> None:
        if self.is_rewindable:
            self.wrapped.restore(mark, commit)

    def mark(self) -> OutputMark:
        return self.wrapped.mark() if self.is_rewindable else {}

    @property
    def durable_writes(self) -> int:
        return int(self.wrapped.durable_writes) if self.is_segmented else 0

    async def close_due(self) -> None:
        if self.is_segmented:
            await self.wrapped.close_due()

    async def finish(self) -> None:
        if self.is_segmented:
            await self.wrapped.finish()


def _fresh(part: Any) -> Any:
    """Return a part that has not run: a copy of a dataclass; any other object itself, which then runs again."""
    # Running state lies outside of a dataclass's fields, in cached properties as a rule: a copy has none of it.
    return dataclasses.replace(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else part
