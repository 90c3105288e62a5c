"""Which framings there are, and which framing and codec a format stands for.

Both are data: a further framing or format is one more entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from streambatch.codecs.containers import Compression, Container, Format
from streambatch.codecs.csv.framing import CsvFraming
from streambatch.codecs.table.chunk import NoneFraming
from streambatch.codecs.text.container import Text
from streambatch.codecs.text.length_prefixed import LengthPrefixedFraming
from streambatch.codecs.text.lines import LinesFraming
from streambatch.core.codec import Framing
from streambatch.core.errors import OptionError

T = TypeVar("T")

FRAMINGS: dict[str, Framing] = {
    framing.name: framing for framing in (LinesFraming(), CsvFraming(), LengthPrefixedFraming(), NoneFraming())
}
FORMATS: dict[str, tuple[str, str]] = {
    "jsonl": ("lines", "json"),
    "csv": ("csv", "csv"),
    "length_prefixed": ("length_prefixed", "json"),
    "arrow": ("none", "arrow"),
    "parquet": ("none", "parquet"),
}
"""Format to names of framing and codec."""
TABLES = tuple(name for name, (framed, _) in FORMATS.items() if framed == "none")
"""Formats whose records are rows of tables."""


def framing(name: str) -> Framing:
    """Return the framing of that name. Raises OptionError."""
    return _entry("framing", name, FRAMINGS)


def resolve_format(format: str) -> tuple[str, str]:
    """Return the names of the framing and the codec that a format stands for. Raises OptionError."""
    return _entry("format", format, FORMATS)


def framing_for_format(format: str) -> Framing:
    """Return the framing that a format stands for. Raises OptionError."""
    return framing(resolve_format(format)[0])


def container_for(format: Format, compression: Compression, header: bytes) -> Container:
    """Return the layout for a sink's format. header: what a fresh file starts with, where the format is text."""
    if format == "arrow":
        from streambatch.codecs.table.container import ArrowStream

        return ArrowStream(compression)
    if format == "parquet":
        from streambatch.codecs.table.container import ParquetFile

        return ParquetFile(compression)
    return Text(compression, header)


def _entry(option: str, name: str, table: Mapping[str, T]) -> T:
    if name not in table:
        raise OptionError(option, repr(name), ", ".join(table))
    return table[name]
