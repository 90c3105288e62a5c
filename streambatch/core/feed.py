"""The way from a source's blocks into the inbox, for one partition, with every byte on it accounted for.

Invariant: the bytes a feed has taken from the memory budget are those reserved for a read, those pending in the
framer, and those of chunks not yet put. A chunk's own bytes belong to the pipeline from `put` on.
"""

from collections.abc import Sequence

import anyio

from streambatch.core.chunks import Chunk
from streambatch.core.codec import Framer
from streambatch.core.intake import Receiver

BLOCKED_SECONDS_MIN = 0.001
"""The observer is not told of a wait for room that is shorter than this."""


class Feed:
    """Frames the blocks of one partition and puts the chunks, in order.

    Call `room` before a read, `push` with what was read, `end` when the partition has ended in order or was cut off,
    and `release` in any case, since it is harmless after `end`.
    """

    def __init__(self, intake: Receiver, framer: Framer, source: str) -> None:
        self._intake, self._framer, self._source = intake, framer, source
        self.records = self.size = 0
        """What was put so far."""
        self._taken = self._kept = framer.pending  # bytes taken from the memory budget, and those that hold something
        intake.memory.take(self._taken)

    @property
    def pending(self) -> int:
        """Bytes held of a record that is not complete."""
        return self._framer.pending

    @property
    def position(self) -> int:
        """Where the last complete record ended in the partition."""
        return self._framer.position

    async def room(self, size: int) -> None:
        """Wait until a read of up to `size` bytes may be made; room that an earlier call left unused counts."""
        missing = size - (self._taken - self._kept)
        if missing <= 0:
            return
        clock = self._intake.clock
        since = clock.monotonic()
        try:
            await self._intake.memory.reserve(missing)
            self._taken += missing
        finally:
            # A wait that a stop cuts short counts too.
            waited = clock.monotonic() - since
            if waited > BLOCKED_SECONDS_MIN:
                self._intake.observer.source_blocked(self._source, waited)

    async def push(self, block: bytes) -> None:
        """Frame what was read and put every chunk it completes, also when cancelled meanwhile.

        An empty block hands unused room back. Raises what `put` raises when the pipeline gives up.
        """
        chunks = self._framer.feed(block, self._intake.clock.monotonic()) if block else []
        await self._hand_over(chunks)

    async def end(self, *, cut_off: bool = False) -> None:
        """Put what the end of the partition completes; the feed then holds nothing."""
        await self._hand_over(self._framer.end(self._intake.clock.monotonic(), cut_off=cut_off))

    def release(self) -> None:
        """Give back every byte still held: the partition is let go without an end. Not to be used again."""
        self._intake.memory.give(self._taken)
        self._taken = self._kept = 0

    async def _hand_over(self, chunks: Sequence[Chunk]) -> None:
        self._kept = self._framer.pending + sum(chunk.size for chunk in chunks)
        # Before the chunks are put, which may take long: room that the read did not use is free for others at once.
        self._settle()
        if not chunks:
            return
        # What a framer has handed out it won't hand out again: a cancellation must not part the chunks of one block.
        with anyio.CancelScope(shield=True):
            for chunk in chunks:
                # Counted down before `put`, which takes the bytes over: `release` must not give them back once more if
                # it raises.
                self._taken -= chunk.size
                self._kept -= chunk.size
                self.records += chunk.count
                self.size += chunk.size
                await self._intake.put(chunk)

    def _settle(self) -> None:
        """Bring what is taken down, or up, to what is kept."""
        surplus = self._taken - self._kept
        if surplus > 0:
            self._intake.memory.give(surplus)
        elif surplus < 0:
            self._intake.memory.take(-surplus)
        self._taken = self._kept
