"""A source that reads the records chosen for a replay, from the file that marks them as chosen.

The file is appended to before a replay and never changed otherwise. How far it was replayed is a position in the state,
so that a killed replay resumes where it was. Each source of the config has a replay source of its own, which reads the
same file and takes its own records. Records keep the ids that they had where they were first read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np

from streambatch.codecs.formats import TABLES
from streambatch.config.config import Config
from streambatch.core.archive import Archive, ArchivedPartition
from streambatch.core.checkpoints import PartitionNotes, SavedPartition
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.errors import SourceError
from streambatch.core.intake import Intake
from streambatch.core.parts import Reader, Site, Source
from streambatch.core.types import IntArray
from streambatch.ops.dead_letters import DeadLetterKey, dead_letter_layout

SUFFIX = ".replay"
"""Ending of a replay source's name. No source in a config can have it, since names hold no dot."""
CHUNK_RECORDS, CHUNK_BYTES = 4096, 1 << 20


class ChosenRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A dead letter chosen for a replay, as a line of the file: its key, and its record as it was framed."""

    run: str
    source: str
    partition: str
    position: int
    origin: tuple[str, str, int]
    """Source, partition and position at which the record was first read."""
    record: bytes
    """Empty if the same record was chosen twice: then another line holds it."""
    columns: tuple[str, ...] | None = None
    """The header of its partition, for CSV."""

    @property
    def key(self) -> DeadLetterKey:
        return DeadLetterKey(self.run, self.source, self.partition, self.position)


_DECODER = msgspec.json.Decoder(ChosenRecord)


class ReplayChunk(Chunk):
    """Records whose positions count in the file of chosen records, and whose ids are those they had."""

    __slots__ = ("begin", "names", "places")

    def __init__(
        self,
        partition: Partition,
        payload: bytes,
        ends: IntArray,
        arrived_at: float,
        *,
        begin: int,
        places: Sequence[int],
        names: Sequence[str],
        columns: tuple[str, ...] | None,
    ) -> None:
        super().__init__(partition, payload, ends, 0, arrived_at, columns=columns)
        self.begin, self.places, self.names = begin, places, names

    @property
    def position(self) -> int:
        return self.places[self.last - 1]

    @property
    def begins_at(self) -> int:
        return self.places[self.first - 1] if self.first else self.begin

    def position_of(self, index: int) -> int:
        return self.places[self.first + index]

    def id_of(self, index: int) -> str:
        return self.names[self.first + index]

    def ids(self) -> list[str]:
        return list(self.names[self.first : self.last])

    def _again(self) -> ReplayChunk:
        return ReplayChunk(
            self.partition, self.payload, self.ends, self.arrived_at, begin=self.begin, places=self.places,
            names=self.names, columns=self.columns,
        )  # fmt: skip


class ReplaySource(Source):
    """The chosen records of one source of a config."""

    def __init__(self, origin: str, format: str, path: Path) -> None:
        self.name = f"{origin}{SUFFIX}"
        # A row of a table died as a JSON object.
        self.format = "jsonl" if format in TABLES else format
        self.chosen = ChosenRecords(origin, path, Partition(self.name, path.name))

    @property
    def is_finite(self) -> bool:
        return True

    def build(self, site: Site) -> ReplayReader:
        """Return a new reader of the chosen records."""
        return ReplayReader(self.name, self.chosen)

    def archive(self) -> ChosenRecords:
        """Return the file of the chosen records: its one partition."""
        return self.chosen


class ReplayReader(Reader):
    """Reads the records that were chosen and not replayed yet, once."""

    is_resumable = True

    def __init__(self, name: str, chosen: ChosenRecords) -> None:
        self.name, self._chosen = name, chosen
        self._position = 0
        self._is_noted = False

    def resume(self, saved: Mapping[str, SavedPartition]) -> None:
        """Continue after the position up to which the file was replayed."""
        known = saved.get(self._chosen.partition.name)
        self._position = known.position if known is not None else 0

    def notes(self) -> Mapping[str, PartitionNotes | None]:
        """Return empty notes for the one file, once."""
        if self._is_noted:
            return {}
        self._is_noted = True
        return {self._chosen.partition.name: {}}

    async def run(self, intake: Intake) -> None:
        """Push every record that was not replayed yet. Raises SourceError."""
        try:
            for chunk in self._chosen.chunks(self._position):
                await intake.memory.reserve(chunk.size)
                chunk.arrived_at = chunk.entered_at = chunk.taken_at = intake.clock.monotonic()
                with anyio.CancelScope(shield=True):
                    await intake.put(chunk)
                await anyio.lowlevel.checkpoint()
        except (OSError, ValueError) as error:
            raise SourceError(self.name, f"{self._chosen.location}: {error}") from error


class ChosenRecords(Archive, ArchivedPartition):
    """The records of one source among those in the file of chosen ones: an archive of one partition."""

    def __init__(self, origin: str, path: Path, partition: Partition) -> None:
        self.location, self.partition = str(path), partition
        self._origin, self._path = origin, path

    def find(self, partition: str, notes: PartitionNotes) -> ArchivedPartition:
        """Return itself."""
        return self

    def chunks(self, first: int, last: int | None = None) -> Iterator[Chunk]:
        """Yield the source's records between two positions. Raises OSError, ValueError."""
        begin, held, size = first, list[tuple[int, ChosenRecord]](), 0
        for place, chosen in read_chosen(self._path, first):
            if last is not None and place > last:
                break
            if chosen.origin[0] != self._origin or not chosen.record:
                continue
            # A chunk has one header: records of CSV files with other columns go into another chunk.
            is_other = held and chosen.columns != held[0][1].columns
            if is_other or len(held) >= CHUNK_RECORDS or size >= CHUNK_BYTES:
                yield self._chunk(begin, held)
                begin, held, size = held[-1][0], [], 0
            held.append((place, chosen))
            size += len(chosen.record)
        if held:
            yield self._chunk(begin, held)

    def _chunk(self, begin: int, held: Sequence[tuple[int, ChosenRecord]]) -> Chunk:
        records = [chosen.record for _, chosen in held]
        return ReplayChunk(
            self.partition, b"".join(records), np.cumsum([len(record) for record in records], dtype=np.int64), 0.0,
            begin=begin, places=[place for place, _ in held], columns=held[0][1].columns,
            names=[f"{chosen.origin[1]}:{chosen.origin[2]}" for _, chosen in held],
        )  # fmt: skip


def replay_sources(config: Config) -> list[ReplaySource]:
    """Return the replay source of each source of a config."""
    path = chosen_path(config)
    return [ReplaySource(part.options.name, part.options.format, path) for part in config.sources]


def chosen_path(config: Config) -> Path:
    """Return the file that marks dead letters as chosen; it lies beside them."""
    letters = dead_letter_layout(config).path
    return letters.with_name(f"{letters.stem}.replayed.jsonl")


def read_chosen(path: Path, first: int = 0) -> Iterator[tuple[int, ChosenRecord]]:
    """Yield the chosen records from a position on, each with the position after it; none without a file.

    A last line without its newline is left out: a kill interrupted its writing. Raises OSError, ValueError.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(first)
        place = first
        for line in file:
            place += len(line)
            if line.endswith(b"\n"):
                yield place, _DECODER.decode(line)


def replayed_to(config: Config, partitions: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Return the position up to which the file was replayed, by source of the config."""
    name = chosen_path(config).name
    found = {part.options.name: partitions.get(f"{part.options.name}{SUFFIX}", {}).get(name) for part in config.sources}
    return {source: saved.position if saved is not None else 0 for source, saved in found.items()}
