"""The table of formats: how each one frames and codes records, and what a source or a sink can do with it.

A further format is one more entry, and its name in the aliases. Other modules derive from here what depends on it.
Codecs are no plugins: a source's or sink's options list the formats that they take, and stored positions count in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, TypeVar

from streambatch.codecs.containers import Compression, Container
from streambatch.codecs.csv.framing import CsvFraming
from streambatch.codecs.table.chunk import NoneFraming
from streambatch.codecs.text.container import Text
from streambatch.codecs.text.length_prefixed import LengthPrefixedFraming
from streambatch.codecs.text.lines import LinesFraming
from streambatch.core.codec import Codec, Framing
from streambatch.core.errors import OptionError

T = TypeVar("T")

InputFormat = Literal["jsonl", "csv", "length_prefixed", "arrow", "parquet"]
"""What a source of whole files can read."""
StreamFormat = Literal["jsonl", "csv", "length_prefixed"]
"""What a source can read as it comes."""
OutputFormat = Literal["jsonl", "csv", "arrow", "parquet"]
"""What a sink can write to files."""
TextFormat = Literal["jsonl", "csv"]
"""What a sink can write as it comes."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How records lie in bytes."""

    framing: Framing
    codec: str
    """Its class, as `module:name`. It is imported when it is asked for, since what some need is slow to import."""
    is_table: bool = False
    """Whether records are rows of tables, which come whole: they can't be read as they come, nor followed."""
    is_whole_only: bool = False
    """Whether a file can't be read before its end is written."""
    container: Callable[[Compression, bytes], Container] | None = None
    """Makes the layout of output files, of their compression and header; None for a format that no sink writes."""

    def new_codec(self) -> Codec:
        """Return what decodes and encodes it."""
        module, _, name = self.codec.partition(":")
        codec: Codec = getattr(import_module(module), name)()
        return codec


# Imported when called: pyarrow takes long to import, and pipelines of text formats don't need it.
def _arrow_stream(compression: Compression, header: bytes) -> Container:
    from streambatch.codecs.table.container import ArrowStream

    return ArrowStream(compression)


def _parquet_file(compression: Compression, header: bytes) -> Container:
    from streambatch.codecs.table.container import ParquetFile

    return ParquetFile(compression)


FRAMINGS: dict[str, Framing] = {
    framing.name: framing for framing in (LinesFraming(), CsvFraming(), LengthPrefixedFraming(), NoneFraming())
}
FORMATS: dict[str, Format] = {
    "jsonl": Format(framing=FRAMINGS["lines"], codec="streambatch.codecs.text.json:JsonCodec", container=Text),
    "csv": Format(framing=FRAMINGS["csv"], codec="streambatch.codecs.csv.codec:CsvCodec", container=Text),
    "length_prefixed": Format(framing=FRAMINGS["length_prefixed"], codec="streambatch.codecs.text.json:JsonCodec"),
    "arrow": Format(
        framing=FRAMINGS["none"],
        codec="streambatch.codecs.table.arrow:ArrowCodec",
        is_table=True,
        container=_arrow_stream,
    ),
    "parquet": Format(
        framing=FRAMINGS["none"],
        codec="streambatch.codecs.table.arrow:ParquetCodec",
        is_table=True,
        is_whole_only=True,
        container=_parquet_file,
    ),
}
TABLES = tuple(name for name, format in FORMATS.items() if format.is_table)
"""Formats whose records are rows of tables."""
STREAMS = tuple(name for name, format in FORMATS.items() if not format.is_table)
"""Formats that can be read as they come, and followed."""


def framing(name: str) -> Framing:
    """Return the framing of that name. Raises OptionError."""
    return _entry("framing", name, FRAMINGS)


def format_of(name: str) -> Format:
    """Return what the table says of a format. Raises OptionError."""
    return _entry("format", name, FORMATS)


def framing_for_format(name: str) -> Framing:
    """Return the framing of a format. Raises OptionError."""
    return format_of(name).framing


def container_for(name: OutputFormat, compression: Compression, header: bytes) -> Container:
    """Return the layout for a sink's format. header: what a fresh file starts with, where the format is text."""
    make = format_of(name).container
    assert make is not None
    return make(compression, header)


def _entry(option: str, name: str, table: Mapping[str, T]) -> T:
    if name not in table:
        raise OptionError(option, repr(name), ", ".join(table))
    return table[name]
