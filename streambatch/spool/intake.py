"""The intake of a source with a spool: single chunks, and requests that are stored whole or not at all."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import anyio
import msgspec

from streambatch.core.chunks import Chunk
from streambatch.core.events import Refusal
from streambatch.core.intake import Intake, StoredRequest
from streambatch.core.spooling import KeyReused, RequestTooLarge, SpoolFull
from streambatch.core.units import format_size
from streambatch.spool.blocks import KEY_BYTES, NewBlock, RequestKey, block_of, key_block
from streambatch.spool.keys import hashed
from streambatch.spool.log import SpoolLog
from streambatch.spool.request import PendingRequest, SpoolRequest
from streambatch.spool.staging import Staging

KEPT_BYTES = 256 << 10
"""Bytes of a request that are held in memory before they are staged in a file."""
SHARE = 16
"""One part in so many of the memory budget may be held by requests that are not complete."""
REQUEST_SHARE = 4
"""One part in so many of a spool is the most that a request may take."""


class SpoolIntake(Intake):
    """Stores chunks and requests in the order in which they come.

    A chunk is written behind: `put` returns before it is durable. A source that answers its clients puts their records
    into a request, whose `commit` waits.
    """

    def __init__(self, intake: Intake, log: SpoolLog, max_bytes: int, folder: Path) -> None:
        self._intake, self._log, self._folder = intake, log, folder
        self.clock, self.observer, self.memory = intake.clock, intake.observer, intake.memory
        self.run_id = intake.run_id
        self.request_bytes_max = max_bytes // REQUEST_SHARE
        self.held = 0
        """Bytes in memory of requests that are not complete."""
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
            return self._request(None)
        hashed_key = hashed(key)
        # What becomes of an earlier request with the key decides whether this one is stored.
        while (earlier := self._under_way.get(hashed_key)) is not None:
            await earlier.wait()
        found = self._log.keys.find(hashed_key, self.clock.wall())
        # Only a request that is stored holds up later ones: a repeated one is compared, and changes nothing.
        if found is None:
            self._under_way[hashed_key] = anyio.Event()
        return self._request(_Identity(hashed_key, found))

    def ended(self, key: bytes) -> None:
        """Let requests go on that wait for one with the same key."""
        self._under_way.pop(key).set()

    def _request(self, identity: _Identity | None) -> _OpenRequest:
        return _OpenRequest(self, self._log, identity, Staging(self._folder, self._log.space))


class _Identity:
    """The identity of a request with a key: the key, and a digest of its records."""

    def __init__(self, key: bytes, earlier: RequestKey | None) -> None:
        self.key = key
        self.earlier = earlier
        """The request that was stored under the key before, if one was."""
        self._digest = blake2b(digest_size=KEY_BYTES)
        self._has_columns = False

    def add(self, chunk: Chunk) -> None:
        """Add records to the digest, which is the same however their body was cut."""
        # Names of columns belong to the records, and count once: how many chunks repeat them depends on how the body
        # was cut.
        if chunk.columns is not None and not self._has_columns:
            self._has_columns = True
            self._digest.update(msgspec.json.encode(chunk.columns))
        self._digest.update(chunk.digestible())

    def digest(self) -> bytes:
        return self._digest.digest()


class _HeldRecords:
    """The records that a request holds until its end: all as blocks, and as chunks those that are in memory."""

    __slots__ = ("block_bytes", "blocks", "chunks", "size")

    def __init__(self) -> None:
        self.blocks: list[NewBlock] = []
        self.chunks: list[Chunk | None] = []
        """The chunk of each block; None for a block that is staged, or that holds no records."""
        self.size = 0
        """Bytes of the chunks."""
        self.block_bytes = 0
        """Bytes that the blocks take in a spool."""

    def add(self, block: NewBlock, chunk: Chunk) -> None:
        self.blocks.append(block)
        self.chunks.append(chunk)
        self.block_bytes += block.block_bytes
        self.size += chunk.size

    def add_key(self, block: NewBlock) -> None:
        self.blocks.append(block)
        self.chunks.append(None)

    def unstaged(self) -> list[NewBlock]:
        return [block for block, chunk in zip(self.blocks, self.chunks, strict=True) if chunk is not None]

    def drop_chunks(self) -> None:
        self.chunks = [None] * len(self.blocks)


class _OpenRequest(StoredRequest):
    """A request whose end has not come yet."""

    def __init__(self, intake: SpoolIntake, log: SpoolLog, identity: _Identity | None, staging: Staging) -> None:
        super().__init__(intake)
        self._intake, self._log, self._identity, self._staging = intake, log, identity, staging
        self._held = _HeldRecords()
        self._count = 0
        self._is_over = False

    async def put(self, chunk: Chunk) -> None:
        """Take the chunk over, to be stored or compared. Raises SpoolFull and RequestTooLarge."""
        self._count += chunk.count
        if self._identity is not None:
            self._identity.add(chunk)
            # A repeated request is only compared: its records are in the spool already.
            if self._identity.earlier is not None:
                self.memory.give(chunk.size)
                return
        block, held = block_of(chunk, self.clock.wall()), self._held
        if held.block_bytes + block.block_bytes > (most := self._intake.request_bytes_max):
            self.memory.give(chunk.size)
            raise RequestTooLarge(f"the request takes more than {format_size(most)} of the spool; send it in parts")
        held.add(block, chunk)
        self._intake.held += chunk.size
        # Clients that send slowly may keep many requests open: together they hold a share of the memory, and no more.
        if held.size > KEPT_BYTES or self._intake.held > self.memory.capacity // SHARE:
            await self._stage()

    async def commit(self) -> int:
        """Store the request, unless it is a repeated one; see `StoredRequest`."""
        try:
            key: RequestKey | None = None
            if (identity := self._identity) is not None:
                if (earlier := identity.earlier) is not None:
                    if earlier.digest != identity.digest():
                        raise KeyReused("the idempotency key was used for other records before")
                    return earlier.received
                key = RequestKey(identity.key, identity.digest(), self._count)
                self._held.add_key(key_block(key, self.clock.wall(), is_alone=not self._held.blocks))
            # A request without records and without a key has nothing to store.
            if self._held.blocks:
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
        self._staging.close()
        if self._identity is not None and self._identity.earlier is None:
            self._intake.ended(self._identity.key)

    async def _stage(self) -> None:
        """Move the chunks in memory to disk, where they wait for the end of the request."""
        if not self._intake.has_room:
            raise SpoolFull("the spool is full")
        await self._staging.write(self._held.unstaged())
        self._held.drop_chunks()
        self._let_go()

    def _let_go(self) -> None:
        self.memory.give(self._held.size)
        self._disown()

    def _disown(self) -> None:
        self._intake.held -= self._held.size
        self._held.size = 0

    async def _store(self, key: RequestKey | None) -> None:
        request = SpoolRequest(self._held.blocks, self._staging.fileno(), key)
        pending = PendingRequest(request, self._held.chunks, is_awaited=True)
        # The log gives the bytes back from now on: `discard`, which comes after, must not do it again.
        self._disown()
        # Until it is durable: `discard` closes the staged file that the writer copies from, and lets the next request
        # with this key go on, which must find this one stored.
        with anyio.CancelScope(shield=True):
            await self._log.append(pending)
            await pending.durable()
