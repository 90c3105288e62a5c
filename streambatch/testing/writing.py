"""How the suite for sinks writes rows, as a pipeline encodes them, and compares those that it reads back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from streambatch.core.parts import Writer
from streambatch.testing.conformance import Conformance
from streambatch.testing.rows import Row, check_same, encoded, encoder_of_rows


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


class ReadsRows(Conformance):
    """Compares the rows of an output with those that were written.

    overtakes: whether rows of a write that was cancelled may arrive after those of later ones, as over a network.
    """

    overtakes: ClassVar[bool] = False

    def read_rows(self, folder: Path) -> list[Row] | None:
        """Return all rows of the output, in order; None for a sink that keeps nothing."""
        raise NotImplementedError("define read_rows: what does the output hold?")

    def _check_second(self, folder: Path, old: list[Row], new: list[Row]) -> None:
        rows = self.read_rows(folder)
        assert rows in (None, old + new, new), f"expected old and new rows, or new ones alone; found {rows}"

    def _check(self, folder: Path, expected: Sequence[Row]) -> None:
        rows = self.read_rows(folder)
        if rows is not None:
            check_same(rows, expected)

    def _check_repeated(self, folder: Path, expected: Sequence[Row]) -> None:
        """Check that all rows came, in order; some may have come again."""
        rows = self.read_rows(folder)
        if rows is not None:
            first = list(dict.fromkeys(rows))
            assert first == list(expected), f"{len(expected)} rows were written, {len(first)} different ones came"

    def _check_torn(self, folder: Path, before: Sequence[Row], cancelled: Sequence[Row], later: Sequence[Row]) -> None:
        rows = self.read_rows(folder)
        if rows is not None:
            count = len(rows) - len(before) - len(later)
            assert 0 <= count <= len(cancelled), f"{len(rows)} rows: some were lost or doubled"
            if self.overtakes:
                rows.sort(key=set(cancelled).__contains__)  # to the end, in the order they have among them
                check_same(rows, [*before, *later, *cancelled[:count]])
            else:
                check_same(rows, [*before, *cancelled[:count], *later])
