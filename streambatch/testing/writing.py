"""How the suite for sinks builds a writer, and writes rows with it as a pipeline encodes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streambatch.core.parts import Sink, Site, Writer
from streambatch.core.wrapping import WrappedWriter, WritingSink, as_sink
from streambatch.testing.rows import Row, encoded, encoder_of_rows


class WritesRows:
    """Writes rows as a pipeline would encode them for the sink."""

    def __init__(self, writer: Writer, format: str) -> None:
        self.format = format
        self._writer, self._encoder = writer, encoder_of_rows(format)

    async def __call__(self, rows: Sequence[Row]) -> None:
        await self._writer.write(self.payload(rows))

    def payload(self, rows: Sequence[Row]) -> bytes:
        return encoded(self._encoder, rows)

    def header(self) -> bytes:
        return self._encoder.header()


def writer_of(sink: Sink | WritingSink, folder: Path) -> Writer:
    options = as_sink(sink)
    return options.build(Site(part=f"sink.{options.name}", folder=folder))


def part_of(writer: Writer) -> Any:
    """Return what its author knows as the running part."""
    return writer.wrapped if isinstance(writer, WrappedWriter) else writer
