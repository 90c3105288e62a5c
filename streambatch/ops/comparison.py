"""Compare a batch that is scored again with the scores and dead letters that the run wrote of it.

The journal has for each batch the number of scores and dead letters and the end of the output. Exactly that many are
read back, so that a batch that differs doesn't shift the comparison of those after it.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import msgspec

from streambatch.codecs.formats import TABLES
from streambatch.core.batches import Batch
from streambatch.core.outcomes import Outcome, Reject
from streambatch.delivery.dead_letters import DeadLetter, encode_dead_letters
from streambatch.durability.stored import JournalEntry
from streambatch.ops.dead_letters import DeadLetterReader
from streambatch.ops.differences import Difference
from streambatch.ops.outputs import (
    OutputError,
    OutputPosition,
    OutputSegments,
    Records,
    first_difference,
    position_of,
    records_of,
    text_of,
)

_LETTERS = msgspec.json.Decoder(DeadLetter)
_COMPARED = ("stage", "reason", "source", "partition", "position", "record", "record_base64", "truncated")


class WrittenScores:
    """The scores that a run wrote to files, read one batch at a time.

    is_whole: whether the run's journal has all its batches. Without its beginning, it is known where a batch begins in
    the output only from the second write on.
    """

    def __init__(self, segments: OutputSegments, start: Mapping[str, Any] | None, *, is_whole: bool) -> None:
        self._segments, self._start = segments, position_of(start)
        self._records: Records | None = None
        self._segment: int | None = None
        self._skipped: OutputPosition | None = None
        self._is_whole = is_whole
        self.compared = 0
        """Records that were there to compare with."""
        self.missing: list[str] = []
        """Segments that are no longer there."""

    @property
    def is_rotated(self) -> bool:
        return self._segments.layout.is_rotated

    def take(self, entry: JournalEntry) -> tuple[Any, str] | None:
        """Return the written records of a batch, and their file; None if they can't be found any more.

        Raises OutputError.
        """
        # A batch without scores wrote nothing to the output.
        if entry.place is None or not entry.scored:
            return None
        place = OutputPosition(*entry.place)
        if not self._is_whole and not self._has_begun(place):
            return None
        if place.segment != self._segment:
            self._open(place.segment)
        if self._records is None:
            return None
        self.compared += entry.scored
        return self._records.take(entry.scored), str(self._segments.find(place.segment))

    def finish(self) -> None:
        """Close the file."""
        if self._records is not None:
            self._records.close()
        self._records = None

    def _has_begun(self, place: OutputPosition) -> bool:
        """Whether the beginning of a batch in its segment is known, though the journal's beginning is lost."""
        if self._skipped is None:
            self._skipped = place
        # Batches of one write share its end: their beginning is known only from the end of the write before.
        if place == self._skipped:
            return False
        self._start, self._is_whole = self._skipped, True
        return True

    def _open(self, number: int) -> None:
        """Continue with another segment."""
        self.finish()
        self._segment = number
        if self._segments.find(number) is None:
            self.missing.append(str(self._segments.name(number)))
            return
        # The segment that was open when the run began holds records of earlier runs.
        offset = self._start.length if number == self._start.segment else 0
        self._records = self._segments.read(number, self._unterminated(number, offset))

    def _unterminated(self, number: int, offset: int) -> int:
        """Return the offset of the first record written: an unterminated line that was there before got a newline."""
        layout = self._segments.layout
        if not offset or layout.compression != "none" or layout.format in TABLES:
            return offset
        path = self._segments.find(number)
        assert path is not None
        with path.open("rb") as file:
            file.seek(offset - 1)
            return offset + (not file.read(1).endswith(b"\n"))


class WrittenDeadLetters:
    """The dead letters that a run wrote, read one batch at a time."""

    def __init__(self, letters: DeadLetterReader, run: str) -> None:
        self.letters = letters
        self._own: Iterator[DeadLetter] = (letter for letter in letters if letter.run == run)

    def take(self, count: int) -> list[DeadLetter]:
        """Return the next `count` dead letters. Raises OutputError."""
        return list(islice(self._own, count))


def score_differences(
    entry: JournalEntry, batch: Batch, outcome: Outcome, written: tuple[Any, str] | None, format: str
) -> list[Difference]:
    """Return the scores of a batch that differ from the written ones; for a table only the first."""
    scored = sum(outcome.scored.values())
    if scored != entry.scored:
        where = written[1] if written else "the journal"
        return [Difference(what="batch", where=where, recorded=f"{entry.scored} scored", found=f"{scored} scored",
                           batch=entry.batch)]  # fmt: skip
    if written is None:
        return []
    found, path = written
    if format in TABLES:
        return _row_differences(entry, batch, outcome, found, path)
    if bytes(outcome.payload) == found:
        return []
    again, then = records_of(outcome.payload, format), records_of(found, format)
    # Fewer records in the output than scored again: the missing ones are shown as nothing.
    then += [b""] * (len(again) - len(then))
    return [
        _score(entry, batch, outcome, row, path, _text(then[row]), _text(line))
        for row, line in enumerate(again)
        if line != then[row]
    ]


def dead_letter_differences(
    entry: JournalEntry, rejects: Sequence[Reject], letters: Sequence[DeadLetter]
) -> list[Difference]:
    """Return the dead letters that differ, but for those of refused records: a sink wrote them, not scoring."""
    # Encoded and decoded once, so that both sides passed the same cutting and escaping. Time and run differ by nature.
    encoded = encode_dead_letters(rejects, at=0.0, pipeline="", run="")
    again = [_compared(_LETTERS.decode(line)) for line in encoded.splitlines()]
    then = [_compared(letter) for letter in letters if letter.stage != "sink"]
    differences = []
    for at in range(max(len(again), len(then))):
        new, old = (each[at] if at < len(each) else None for each in (again, then))
        if new != old:
            named: Mapping[str, Any] = new or old or {}
            differences.append(
                Difference(
                    what="dead_letter", where=str(named["source"]), recorded=_short(old, new), found=_short(new, old),
                    batch=entry.batch, source=named["source"], partition=named["partition"],
                    position=named["position"],
                )
            )  # fmt: skip
    return differences


def _row_differences(entry: JournalEntry, batch: Batch, outcome: Outcome, found: Any, path: str) -> list[Difference]:
    import pyarrow as pa
    from pyarrow import ipc

    source = pa.BufferReader(outcome.payload)
    batches: list[Any] = []
    while source.tell() < len(outcome.payload):
        batches += ipc.open_stream(source)
    again = pa.Table.from_batches(batches)
    if found is None:
        return [_score(entry, batch, outcome, 0, path, "nothing", text_of(again, 0))]
    try:
        again = again.cast(found.schema)
    except (pa.ArrowException, ValueError) as error:
        raise OutputError(f"{path} has other columns: {error}") from error
    row = first_difference(again, found)
    if row is None:
        return []
    return [_score(entry, batch, outcome, row, path, text_of(found, row), text_of(again, row))]


def _score(
    entry: JournalEntry, batch: Batch, outcome: Outcome, row: int, path: str, then: str, again: str
) -> Difference:
    # Rejected records have no row: `index` maps rows of the outcome to records of the batch.
    place = row if outcome.index is None else int(outcome.index[row])
    chunk, index = batch.locate(place)
    return Difference(
        what="score", where=path, recorded=then, found=again, batch=entry.batch, source=chunk.partition.source,
        partition=chunk.partition.name, position=chunk.position_of(index), id=_id_in(again),
    )  # fmt: skip


def _compared(letter: DeadLetter) -> dict[str, Any]:
    return {name: getattr(letter, name) for name in _COMPARED}


def _short(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    if one is None:
        return "no dead letter"
    shown = ["stage", "reason", *(name for name in _COMPARED[2:] if other is not None and one[name] != other[name])]
    return ", ".join(str(one[name]) for name in shown)


def _id_in(text: str) -> int | str | None:
    """Return the id in the text of a score: a line of JSON or CSV, or a row of a table."""
    with suppress(ValueError, SyntaxError, LookupError, TypeError):
        found = msgspec.json.decode(text) if text.startswith('{"') else literal_eval(text)
        record_id = found["id"]
        return record_id if isinstance(record_id, int | str) else None
    return text.partition(",")[0]


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\n") or "nothing"
