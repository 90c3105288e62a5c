"""How the suites build readers and writers from options, and what they check of the options themselves."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any, TypeVar

from streambatch.core.parts import Reader, Sink, Site, Source, Writer
from streambatch.core.wrapping import (
    RunningSource,
    WrappedReader,
    WrappedSink,
    WrappedSource,
    WrappedWriter,
    WritingSink,
    as_sink,
    as_source,
)
from streambatch.spool.spooled import reader_of
from streambatch.testing.conformance import skip

Options = TypeVar("Options", bound="Source | RunningSource | Sink | WritingSink")


def new_reader(source: Source | RunningSource, folder: Path, state: str = "state") -> Reader:
    """Return a new reader of a source, with its spool, if it has one, in the state folder of that name."""
    return reader_of(as_source(source), Site(folder=folder, state_dir=folder / state))


def new_writer(sink: Sink | WritingSink, folder: Path) -> Writer:
    """Return a new writer of a sink."""
    options = as_sink(sink)
    return options.build(Site(part=f"sink.{options.name}", folder=folder))


def part_of(running: Reader | Writer) -> Any:
    """Return what its author knows as the running part."""
    return running.wrapped if isinstance(running, WrappedReader | WrappedWriter) else running


def pickled(options: Options) -> Options:
    """Return the options as another process gets them. Fails a test if they can't be sent there."""
    try:
        again: Options = pickle.loads(pickle.dumps(options))
    except Exception as error:
        raise AssertionError(f"{type(options).__name__} can't be pickled: {error}") from error
    assert (again.name, again.format) == (options.name, options.format), "pickled, it has another name or format"
    return again


def check_builds_again(options: Source | RunningSource | Sink | WritingSink) -> None:
    """Skip a test if all running parts of these options are one object."""
    # Options of others are no subclass of ours: only sources have `is_finite`.
    wrapped = as_source(options) if hasattr(options, "is_finite") else as_sink(options)  # type: ignore[arg-type]
    if isinstance(wrapped, WrappedSource | WrappedSink) and not dataclasses.is_dataclass(options):
        skip("it is its own running part, and no dataclass that could be copied")
