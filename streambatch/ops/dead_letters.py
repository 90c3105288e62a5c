"""Read dead letters back from the files that a pipeline wrote them to. Blocking."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from streambatch.config.config import Config
from streambatch.core.archive import OutputLayout
from streambatch.delivery.dead_letter_file import FILE_NAME
from streambatch.delivery.dead_letters import DeadLetter
from streambatch.ops.outputs import OutputError, OutputSegments, TextRecords, position_of

_DECODER = msgspec.json.Decoder(DeadLetter)


class DeadLetterKey(NamedTuple):
    """What identifies a dead letter: a record dies at most once in a run."""

    run: str
    source: str
    partition: str
    position: int


def dead_letter_key(letter: DeadLetter) -> DeadLetterKey:
    return DeadLetterKey(letter.run, letter.source, letter.partition, letter.position)


def dead_letter_layout(config: Config) -> OutputLayout:
    """Return the files that hold a config's dead letters."""
    path = config.dead_letter.path
    return OutputLayout(Path(path) if path else config.state_dir / FILE_NAME, config.dead_letter.rotate is not None)


class DeadLetterReader:
    """The dead letters between two positions of their output, in the order they were written.

    start, end: marks of the output; without an end, everything that the files hold. mark: the last checkpoint's.
    """

    def __init__(
        self,
        layout: OutputLayout,
        start: Mapping[str, Any] | None,
        end: Mapping[str, Any] | None,
        mark: Mapping[str, Any] | None,
    ) -> None:
        self._segments = OutputSegments(layout, mark)
        self._start, self._end = position_of(start), position_of(end) if end else None
        self.missing: list[Path] = []
        """Segments that are no longer there."""

    def __iter__(self) -> Iterator[DeadLetter]:
        """Yield the dead letters. Raises OutputError for a line that is not one."""
        number, offset = self._start
        while self._end is None or number <= self._end.segment:
            is_last = self._end is not None and number == self._end.segment
            length = self._end.length if self._end is not None and is_last else None
            path = self._segments.find(number)
            if path is not None:
                yield from self._read(number, offset, length, is_whole=self._segments.is_closed(number))
            elif self._end is None and not self._has_segment_after(number):
                return
            elif length != 0:
                self.missing.append(self._segments.name(number))
            if not self._segments.layout.is_rotated:
                return
            number, offset = number + 1, 0

    def _has_segment_after(self, number: int) -> bool:
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
                        return  # the last line of an open file may be half written
                    raise OutputError(f"{self._segments.name(number)}: no dead letter: {error}") from error
        finally:
            records.close()


def record_of(letter: DeadLetter) -> bytes:
    """Return the bytes of the record that died, as they were read, without the line ending."""
    if letter.record_base64 is not None:
        return b64decode(letter.record_base64)
    return (letter.record or "").encode()
