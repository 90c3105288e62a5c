"""A socket source with a spool behind it: what it puts goes to disk first, and from there into the pipeline.

Records count as received once they are durable in the spool, and a client that is answered is answered then. All of a
source's records are one partition, in the order in which they were stored; a restart goes on after the acked ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio import to_thread

from streambatch.core.checkpoints import PartitionNotes, SavedPartition
from streambatch.core.chunks import Chunk
from streambatch.core.errors import OptionError
from streambatch.core.events import Refusal
from streambatch.core.intake import Intake, StoredRequest
from streambatch.core.parts import Reader, Site, Source
from streambatch.core.spooling import (
    DEDUPE_SECONDS,
    KeyReused,
    RequestTooLarge,
    SpoolFull,
    SpoolOptions,
    SpoolStatus,
)
from streambatch.core.units import format_size
from streambatch.spool.blocks import KEY_BYTES, PARTITION, NewBlock, RequestKey, block_of, key_block, tally
from streambatch.spool.keys import hashed, write_whole
from streambatch.spool.log import SpoolLog
from streambatch.spool.request import PendingRequest, SpoolRequest

FOLDER = "spool"
KEPT_BYTES = 256 << 10
"""What of a request is held in memory before it is staged in a file."""
SHARE = 16
"""One part in so many of the memory budget may be held by requests that are not complete."""
REQUEST_SHARE = 4
"""One part in so many of a spool is the most that a request may take."""


class SpooledReader(Reader):
    """Runs a reader with a spool between it and the pipeline. Its folder is `<state_dir>/spool/<name>`.

    The spool belongs to the holder of the state_dir: two processes must not run it at once.
    """

    is_resumable = True
    counts_recovered = True

    def __init__(self, reader: Reader, options: SpoolOptions, dedupe_window: float, state_dir: Path) -> None:
        self.name, self._reader, self._options, self._dedupe_window = reader.name, reader, options, dedupe_window
        self.folder = state_dir / FOLDER / reader.name
        self._saved: SavedPartition | None = None
        self._log: SpoolLog | None = None
        self._is_noted = False

    @property
    def spool(self) -> SpoolStatus:
        """The spool as it is now; as it was at last once the reader has ended."""
        if self._log is None:
            return SpoolStatus(size=0, capacity=self._options.max_bytes, corrupt_segments=0, backlog_records=0)
        return self._log.status

    @property
    def address(self) -> str | None:
        return self._reader.address

    async def listening(self) -> str | None:
        return await self._reader.listening()

    async def run(self, intake: Intake) -> None:
        """Recover the spool, then run the reader and hand over what is stored, until cancelled.

        Cancelled, it stores what the reader has read, hands over what is in memory, and leaves the rest in the spool.
        Raises what the reader raises, and SourceError when nothing can be stored any more.
        """
        log = self._log = self._made(intake)
        saved = self._saved or SavedPartition(position=0, read_to=0, notes={})
        acked, known_to = saved.position, max(saved.position, saved.read_to)
        found, now = await log.open(acked, known_to), intake.clock.monotonic()
        if found.known:
            intake.recovered(tally(self.name, found.known, known_to - acked, acked, now))
        if found.new:
            intake.received(tally(self.name, found.new, log.end - known_to, known_to, now))
        try:
            await self._run(intake, log)
        finally:
            with anyio.CancelScope(shield=True):
                await log.close()

    def resume(self, saved: Mapping[str, SavedPartition]) -> None:
        """Take over how far the spool was acked."""
        self._saved = saved.get(PARTITION)

    def notes(self) -> Mapping[str, PartitionNotes | None]:
        """Return what is to be stored of the spool; it is never over."""
        if self._is_noted:
            return {}
        self._is_noted = True
        return {PARTITION: {}}

    def acked(self, positions: Mapping[str, int]) -> None:
        """Have segments removed whose records are all acked."""
        position = positions.get(PARTITION)
        if position is not None and self._log is not None:
            self._log.acked(position)

    async def _run(self, intake: Intake, log: SpoolLog) -> None:
        written, handed_over = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_write, log, written)
            tasks.start_soon(_hand_over, log, intake, handed_over)
            tasks.start_soon(_hurry_when_cancelled, log)
            try:
                await self._reader.run(SpoolIntake(intake, log, self._options.max_bytes, self.folder))
            finally:
                log.stop()
                with anyio.CancelScope(shield=True):
                    await written.wait()
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await handed_over.wait()
                    while (chunk := log.take_ready()) is not None:
                        await intake.enqueue(chunk)

    def _made(self, intake: Intake) -> SpoolLog:
        return SpoolLog(
            self.name,
            self.folder,
            max_bytes=self._options.max_bytes,
            window=self._dedupe_window,
            memory=intake.memory,
            clock=intake.clock,
            observer=intake.observer,
            received=intake.received,
            lost=intake.lost,
        )


def reader_of(source: Source, site: Site) -> Reader:
    """Return a new reader of a source, with the spool that its option `spool` asks for between it and the pipeline.

    site: the pipeline's. Raises OptionError when there is no state_dir to keep it in.
    """
    site = replace(site, part=f"source.{source.name}")
    if source.spool is None:
        return source.build(site)
    if site.state_dir is None:
        raise OptionError(f"{source.name}.spool", "no state_dir", "a spool only with a state_dir to keep it in")
    return SpooledReader(source.build(site), source.spool, source.dedupe_window or DEDUPE_SECONDS, site.state_dir)


async def _write(log: SpoolLog, written: anyio.Event) -> None:
    try:
        with anyio.CancelScope(shield=True):
            await log.write()
    finally:
        written.set()


async def _hurry_when_cancelled(log: SpoolLog) -> None:
    """Let those go on who wait for room: the source is cancelled too, and ends only after them."""
    try:
        await anyio.sleep_forever()
    finally:
        log.hurry()


async def _hand_over(log: SpoolLog, intake: Intake, ended: anyio.Event) -> None:
    try:
        while True:
            chunk = await log.next()
            with anyio.CancelScope(shield=True):
                await intake.enqueue(chunk)
    finally:
        ended.set()


class SpoolIntake(Intake):
    """What a source with a spool pushes into.

    What is put is written behind, in turn: who waits for it to be durable puts it in a request, and commits that.
    """

    def __init__(self, intake: Intake, log: SpoolLog, max_bytes: int, folder: Path) -> None:
        self._intake, self._log, self.folder = intake, log, folder
        self.clock, self.observer, self.memory = intake.clock, intake.observer, intake.memory
        self.run_id = intake.run_id
        self.request_bytes_max = max_bytes // REQUEST_SHARE
        self.held = 0
        self._under_way: dict[bytes, anyio.Event] = {}

    @property
    def has_room(self) -> bool:
        return self._log.space.has_room

    def refused(self, records: int, reason: Refusal) -> None:
        """Count records whose sender was told no."""
        self._intake.refused(records, reason)

    async def put(self, chunk: Chunk) -> None:
        """Take the chunk over; its records count once they are durable."""
        block = block_of(chunk, self.clock.wall())
        await self._log.append(PendingRequest(SpoolRequest([block], None, None), [chunk], is_awaited=False))

    async def begin(self, key: str | None) -> StoredRequest:
        """Begin a request; see `Intake.begin`."""
        if key is None:
            return _OpenRequest(self, self._log, None, None)
        known = hashed(key)
        while (earlier := self._under_way.get(known)) is not None:
            await earlier.wait()
        found = self._log.keys.find(known, self.clock.wall())
        if found is None:
            self._under_way[known] = anyio.Event()
        return _OpenRequest(self, self._log, known, found)

    def ended(self, key: bytes) -> None:
        """Let those go on who wait for a request with the same key."""
        self._under_way.pop(key).set()


class _OpenRequest(StoredRequest):
    """A request that is written behind what was put before its end."""

    def __init__(self, intake: SpoolIntake, log: SpoolLog, key: bytes | None, earlier: RequestKey | None) -> None:
        self._intake, self._log, self._key, self._earlier = intake, log, key, earlier
        self.clock, self.observer, self.memory = intake.clock, intake.observer, intake.memory
        self._digest = blake2b(digest_size=KEY_BYTES)
        self._blocks: list[NewBlock] = []
        self._chunks: list[Chunk | None] = []
        self._count = self._held = self._staged = self._block_bytes = 0
        self._file: Any = None
        self._is_named = self._is_over = False

    async def put(self, chunk: Chunk) -> None:
        """Take the chunk over, to be stored or compared. Raises SpoolFull and RequestTooLarge."""
        self._count += chunk.count
        if self._key is not None:
            self._digest_of(chunk)
        if self._earlier is not None:
            self.memory.give(chunk.size)
            return
        block = block_of(chunk, self.clock.wall())
        if self._block_bytes + block.block_bytes > (most := self._intake.request_bytes_max):
            self.memory.give(chunk.size)
            raise RequestTooLarge(f"the request takes more than {format_size(most)} of the spool; send it in parts")
        self._block_bytes += block.block_bytes
        self._held += chunk.size
        self._intake.held += chunk.size
        self._blocks.append(block)
        self._chunks.append(chunk)
        if self._held > KEPT_BYTES or self._intake.held > self.memory.capacity // SHARE:
            await self._stage()

    def _digest_of(self, chunk: Chunk) -> None:
        """Digest the records, however the body was cut, and what gives their fields names, once."""
        if chunk.columns is not None and not self._is_named:
            self._is_named = True
            self._digest.update(msgspec.json.encode(chunk.columns))
        self._digest.update(chunk.digestible())

    async def commit(self) -> int:
        """Store the request, unless it is a repeated one; see `StoredRequest`."""
        try:
            if self._earlier is not None:
                if self._earlier.digest != self._digest.digest():
                    raise KeyReused("the idempotency key was used for other records before")
                return self._earlier.received
            key: RequestKey | None = None
            if self._key is not None:
                key = RequestKey(self._key, self._digest.digest(), self._count)
                self._blocks.append(key_block(key, self.clock.wall(), is_alone=not self._blocks))
                self._chunks.append(None)
            if self._blocks:
                await self._store(key)
            return self._count
        finally:
            self.discard()

    def discard(self) -> None:
        """Let go of what is not stored; see `StoredRequest`."""
        if self._is_over:
            return
        self._is_over = True
        self._let_go()
        self._log.space.staged -= self._staged
        if self._file is not None:
            self._file.close()
        if self._key is not None and self._earlier is None:
            self._intake.ended(self._key)

    async def _stage(self) -> None:
        """Write what is held to where the request waits for its end. What isn't committed dies with the process."""
        if not self._intake.has_room:
            raise SpoolFull("the spool is full")
        blocks = [block for block, chunk in zip(self._blocks, self._chunks, strict=True) if chunk is not None]
        data = b"".join(piece for block in blocks for piece in block.packed)
        offset, self._staged = self._staged, self._staged + len(data)
        self._log.space.staged += len(data)
        try:
            if self._file is None:
                unnamed = partial(tempfile.TemporaryFile, buffering=0, dir=self._intake.folder)
                self._file = await to_thread.run_sync(unnamed)
            await to_thread.run_sync(write_whole, self._file.fileno(), data, offset)
        except OSError as error:
            raise SpoolFull(f"the spool can't be written: {error.strerror or error}") from error
        for block in blocks:
            block.packed = ()
        self._chunks = [None] * len(self._blocks)
        self._let_go()

    def _let_go(self) -> None:
        self.memory.give(self._held)
        self._intake.held -= self._held
        self._held = 0

    async def _store(self, key: RequestKey | None) -> None:
        staged = self._file.fileno() if self._file is not None else None
        pending = PendingRequest(SpoolRequest(self._blocks, staged, key), self._chunks, is_awaited=True)
        self._intake.held -= self._held
        self._held = 0  # it is the log's from now on
        with anyio.CancelScope(shield=True):
            await self._log.append(pending)
            await pending.durable()
