"""Answers on their way back to the clients whose records they are.

An answer is sent at once. The part that the connection's buffer doesn't take waits in memory, on the budget. `load` is
how much a connection is owed; its reader reads on only while that is little, so a client that takes no answers holds
back itself alone. Nothing here blocks or raises.
"""

from __future__ import annotations

import selectors
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import anyio
from anyio.lowlevel import checkpoint

from streambatch.core.feed import Feed
from streambatch.core.intake import Intake
from streambatch.core.signal import Signal

ANSWER_BYTES = 256
"""Bytes reckoned for an answer that is not known yet, besides the size of its record."""
ANSWER_SECONDS = 2.0
"""How long, at a stop, clients wait for an answer after the last one."""
LAST_ANSWERS_SECONDS = 10.0
"""How long a stop may take to answer what was received."""


class Replies:
    """Answers owed to one connection: those to records that were put, and the unsent part of others."""

    def __init__(self, sock: socket.socket, writer: ReplyWriter) -> None:
        self._sock, self._writer = sock, writer
        self._unsent: deque[memoryview] = deque()
        self._unsent_size = self._answered = self._answered_size = 0
        self.is_gone = False
        self.feed: Feed | None = None
        self.moved: Callable[[], None] | None = None
        """Called whenever less is owed than before."""

    @property
    def is_owed(self) -> bool:
        """Whether the client still has something to get."""
        return not self.is_gone and (self._unsent_size > 0 or self._unanswered > 0)

    @property
    def load(self) -> int:
        """Bytes that are held, or will be, for answers to this client."""
        if self.is_gone or self.feed is None:
            return 0
        return self._unsent_size + self.feed.size - self._answered_size + ANSWER_BYTES * self._unanswered

    def answer(self, records: int, size: int, lines: bytes) -> None:
        """Send the next lines, in the order in which their records came; see `delivery.replies.Origin`."""
        self._answered += records
        self._answered_size += size
        if not self.is_gone:
            # Taken beyond the budget if need be: an answer that exists can't wait for room. Reading waits instead, see
            # `load`.
            self._writer.memory.take(len(lines))
            self._unsent_size += len(lines)
            self._unsent.append(memoryview(lines))
            # Behind a part that found no room this one waits too, so that the answers keep their order.
            if len(self._unsent) == 1:
                self.flush()
        self._tell()

    def flush(self) -> None:
        """Send what the connection takes now."""
        sent = 0
        try:
            while self._unsent:
                count = self._sock.send(self._unsent[0])
                sent += count
                if count == len(self._unsent[0]):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = self._unsent[0][count:]
        except BlockingIOError:
            pass
        except OSError:
            # The client is gone. `give_up` also gives back what this call sent, since `_unsent_size` still holds it.
            self.give_up()
            self._tell()
            return
        self._unsent_size -= sent
        self._writer.memory.give(sent)
        if self._unsent:
            self._writer.await_room(self, self._sock, moved=sent > 0)
        else:
            self._writer.forget(self, self._sock)
        if sent:
            self._tell()

    def give_up(self) -> None:
        """Drop what is not sent and all that comes: the client is gone, or will be."""
        self.is_gone = True
        self._writer.forget(self, self._sock)
        self._writer.memory.give(self._unsent_size)
        self._unsent.clear()
        self._unsent_size = 0

    def shut_down(self) -> None:
        """End the connection both ways: the next read from it finds the end."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self.give_up()
        self._tell()

    @property
    def _unanswered(self) -> int:
        return 0 if self.feed is None else self.feed.records - self._answered

    def _tell(self) -> None:
        if self.moved is not None:
            self.moved()
            self._writer.moved.notify()


class ReplyWriter:
    """Sends what connections have no room for as they get it. `stalled` is told of one that takes nothing."""

    def __init__(self, intake: Intake, idle_timeout: float, stalled: Callable[[Replies], None]) -> None:
        self.memory = intake.memory
        self._clock, self._idle_timeout, self._stalled = intake.clock, idle_timeout, stalled
        self._selector = selectors.DefaultSelector()
        self._since: dict[Replies, float] = {}
        self._waited_for, self.moved = Signal(), Signal()

    def replies(self, sock: socket.socket) -> Replies:
        """Return the replies of a new connection."""
        return Replies(sock, self)

    async def run(self) -> None:
        """Send until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cut_off_stalled)
            while True:
                await anyio.wait_readable(self._selector.fileno())
                for key, _ in self._selector.select(0):
                    key.data.flush()
                await checkpoint()

    async def answer_rest(self, is_owed: Callable[[], bool]) -> None:
        """Send on after a stop while clients are owed answers, and while some get them."""
        # The source is cancelled by now, so that only a shield lets anything be awaited.
        with anyio.move_on_after(LAST_ANSWERS_SECONDS, shield=True):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.run)
                is_moving = True
                while is_moving and is_owed():
                    with anyio.move_on_after(ANSWER_SECONDS) as waiting:
                        await self.moved.wait()
                    is_moving = not waiting.cancelled_caught
                tasks.cancel_scope.cancel()

    def close(self) -> None:
        """Let go of the selector; no connection is waited for any more."""
        self._selector.close()

    def await_room(self, replies: Replies, sock: socket.socket, *, moved: bool) -> None:
        """Flush `replies` when its connection takes more."""
        # Registered once, for as long as something is unsent.
        if replies not in self._since:
            self._selector.register(sock, selectors.EVENT_WRITE, replies)
        elif not moved:
            return
        # Moved to the end of the dict, so that its first entry is the client that has taken nothing for the longest.
        self._since.pop(replies, None)
        self._since[replies] = self._clock.monotonic()
        self._waited_for.notify()

    def forget(self, replies: Replies, sock: socket.socket) -> None:
        """Wait for a connection's room no more."""
        if self._since.pop(replies, None) is not None:
            self._selector.unregister(sock)

    async def _cut_off_stalled(self) -> None:
        while True:
            while not self._since:
                await self._waited_for.wait()
            replies, since = next(iter(self._since.items()))
            await anyio.sleep(max(0.0, since + self._idle_timeout - self._clock.monotonic()))
            # The time differs if the client took something during the sleep.
            if self._since.get(replies) == since:
                self._stalled(replies)
