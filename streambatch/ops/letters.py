"""Reads dead letters back from their files, and tells which of them were replayed. Blocking."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from streambatch.config.config import Config
from streambatch.delivery.dead_letter_log import FILE_NAME
from streambatch.delivery.dead_letters import DeadLetter
from streambatch.ops.outputs import Layout, OutputError, Segments, TextRecords, place_of

_DECODER = msgspec.json.Decoder(DeadLetter)


class Key(NamedTuple):
    """What tells dead letters apart."""

    run: str
    source: str
    partition: str
    position: int


def key_of(letter: DeadLetter) -> Key:
    return Key(letter.run, letter.source, letter.partition, letter.position)


def layout_of(config: Config) -> Layout:
    """Return where a config's dead letters are."""
    path = config.dead_letter.path
    return Layout(Path(path) if path else config.state_dir / FILE_NAME, config.dead_letter.rotate is not None)


class Letters:
    """Dead letters between two places of their files.

    start, end: marks; without an end, to where the files end. mark: how far they go by the last checkpoint.
    missing: segments that are there no more.
    """

    def __init__(
        self,
        layout: Layout,
        start: Mapping[str, Any] | None,
        end: Mapping[str, Any] | None,
        mark: Mapping[str, Any] | None,
    ) -> None:
        self._segments = Segments(layout, mark)
        self._start, self._end = place_of(start), place_of(end) if end else None
        self.missing: list[Path] = []

    def __iter__(self) -> Iterator[DeadLetter]:
        """Yield them in the order they were written. Raises OutputError for what is no dead letter."""
        number, offset = self._start
        while self._end is None or number <= self._end.segment:
            is_last = self._end is not None and number == self._end.segment
            length = self._end.length if self._end is not None and is_last else None
            path = self._segments.find(number)
            if path is not None:
                yield from self._read(number, offset, length, is_whole=self._segments.is_closed(number))
            elif self._end is None and not self._later(number):
                return
            elif length != 0:
                self.missing.append(self._segments.name(number))
            if not self._segments.layout.is_rotated:
                return
            number, offset = number + 1, 0

    def _later(self, number: int) -> bool:
        return any(later > number for later in self._segments.closed())

    def _read(self, number: int, start: int, end: int | None, *, is_whole: bool) -> Iterator[DeadLetter]:
        records = self._segments.read(number, start, end)
        assert isinstance(records, TextRecords)
        try:
            while line := records.take(1):
                try:
                    yield _DECODER.decode(line)
                except msgspec.DecodeError as error:
                    if end is None and not is_whole and not records.take(1):
                        return  # it is being written
                    raise OutputError(f"{self._segments.name(number)}: no dead letter: {error}") from error
        finally:
            records.close()


def record_of(letter: DeadLetter) -> bytes:
    """Return the exact bytes of the record that died."""
    if letter.record_base64 is not None:
        return b64decode(letter.record_base64)
    return (letter.record or "").encode()
