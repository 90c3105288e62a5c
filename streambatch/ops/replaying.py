"""A source that reads dead letters chosen for a replay, from the file in which they are marked as replayed.

The file is appended to before a replay and never changed else; how far it was replayed is a position in the state, so
that a replay that was killed goes on where it was. Each source whose records died has a replay of its own, which reads
the same file and takes what is its. Records keep the names that they had where they were read first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np

from streambatch.codecs.formats import TABLES
from streambatch.config.config import Config
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.durable import Notes, Saved
from streambatch.core.errors import SourceError
from streambatch.core.intake import Intake
from streambatch.core.types import IntArray
from streambatch.ops.letters import Key, layout_of

SUFFIX = ".replay"
"""What the name of a source's replay ends with; no source in a config can be called so."""
CHUNK_RECORDS, CHUNK_BYTES = 4096, 1 << 20


class Chosen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A dead letter that was chosen: its key, where its record was read first, and the record as it was framed.

    record: empty where the same record was chosen twice: another line has it. columns: the header of its partition, of
    CSV.
    """

    run: str
    source: str
    partition: str
    position: int
    origin: tuple[str, str, int]
    record: bytes
    columns: tuple[str, ...] | None = None

    @property
    def key(self) -> Key:
        return Key(self.run, self.source, self.partition, self.position)


_DECODER = msgspec.json.Decoder(Chosen)


class ReplayChunk(Chunk):
    """Records whose positions are in the file of what was chosen, and whose names are those they had."""

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


class ReplaySource:
    """The chosen dead letters of one source of a config."""

    is_finite = True

    def __init__(self, origin: str, format: str, path: Path) -> None:
        self.origin, self.path, self.name = origin, path, f"{origin}{SUFFIX}"
        # A row of a table died as a JSON object.
        self.format = "jsonl" if format in TABLES else format
        self._position = 0
        self._is_noted = False

    @cached_property
    def partition(self) -> Partition:
        return Partition(self.name, self.path.name)

    def resume(self, saved: Mapping[str, Saved]) -> None:
        """Learn how far the file was replayed."""
        known = saved.get(self.partition.name)
        self._position = known.position if known is not None else 0

    def notes(self) -> Mapping[str, Notes | None]:
        """Return nothing but that there is a file."""
        if self._is_noted:
            return {}
        self._is_noted = True
        return {self.partition.name: {}}

    async def run(self, intake: Intake) -> None:
        """Push all that is not replayed yet. Raises SourceError."""
        try:
            for chunk in self.chunks(self._position):
                await intake.memory.reserve(chunk.size)
                chunk.arrived_at = chunk.entered_at = chunk.taken_at = intake.clock.monotonic()
                with anyio.CancelScope(shield=True):
                    await intake.put(chunk)
                await anyio.lowlevel.checkpoint()
        except (OSError, ValueError) as error:
            raise SourceError(self.name, f"{self.path}: {error}") from error

    def acked(self, positions: Mapping[str, int]) -> None:
        """The file keeps what was replayed: there is nothing to do."""

    def revoke(self, partition: str) -> None:
        """The file is no other reader's: there is nothing to do."""

    def chunks(self, first: int, last: int | None = None) -> Iterator[Chunk]:
        """Yield the source's records between two positions. Raises OSError, ValueError."""
        begin, held, size = first, list[tuple[int, Chosen]](), 0
        for place, chosen in read_chosen(self.path, first):
            if last is not None and place > last:
                break
            if chosen.origin[0] != self.origin or not chosen.record:
                continue
            is_other = held and chosen.columns != held[0][1].columns
            if is_other or len(held) >= CHUNK_RECORDS or size >= CHUNK_BYTES:
                yield self._chunk(begin, held)
                begin, held, size = held[-1][0], [], 0
            held.append((place, chosen))
            size += len(chosen.record)
        if held:
            yield self._chunk(begin, held)

    def _chunk(self, begin: int, held: Sequence[tuple[int, Chosen]]) -> Chunk:
        records = [chosen.record for _, chosen in held]
        return ReplayChunk(
            self.partition, b"".join(records), np.cumsum([len(record) for record in records], dtype=np.int64), 0.0,
            begin=begin, places=[place for place, _ in held], columns=held[0][1].columns,
            names=[f"{chosen.origin[1]}:{chosen.origin[2]}" for _, chosen in held],
        )  # fmt: skip


def replay_sources(config: Config) -> list[ReplaySource]:
    """Return the replays of a config's sources."""
    path = chosen_path(config)
    return [ReplaySource(part.options.name, part.options.format, path) for part in config.sources]


def chosen_path(config: Config) -> Path:
    """Return the file in which dead letters are marked as replayed; it is beside them."""
    letters = layout_of(config).path
    return letters.with_name(f"{letters.stem}.replayed.jsonl")


def read_chosen(path: Path, first: int = 0) -> Iterator[tuple[int, Chosen]]:
    """Yield what was chosen, each with the position after it; nothing if there is no file. Raises OSError, ValueError.

    A last line without its newline was being written when the process was killed: it is not chosen.
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
    """Return how far the file was replayed, by source of the config."""
    name = chosen_path(config).name
    found = {part.options.name: partitions.get(f"{part.options.name}{SUFFIX}", {}).get(name) for part in config.sources}
    return {source: saved.position if saved is not None else 0 for source, saved in found.items()}
