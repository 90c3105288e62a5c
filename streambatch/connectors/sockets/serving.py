"""The connections of one source: accept, read, end.

One task reads them all in turns, into one buffer, and puts what it read: while the pipeline takes nothing, nothing is
read. A read is one synchronous call, and what it brought is framed before anything else can run. So a connection holds
no bytes but its partial record, bounded by `leases`, and what a read returned is put, also by a cancelled task. With
`reply` its answers come on top, bounded by not reading on.
"""

from __future__ import annotations

import logging
import selectors
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Protocol

import anyio

from streambatch.codecs.formats import framing_for_format
from streambatch.connectors.sockets.replies import Replies, ReplyWriter
from streambatch.connectors.sockets.silence import Silence
from streambatch.core.allocator import keep_freed_memory
from streambatch.core.chunks import Partition
from streambatch.core.feed import Feed
from streambatch.core.intake import Intake
from streambatch.core.leases import RecordLeases

READ_BYTES = 256 << 10
"""The most one read brings; no more than the allowance for a connection without a lease."""
# A flood of new clients must not keep the loop from those that are connected already.
ACCEPTS_IN_A_ROW = 64
ACCEPT_PAUSE_SECONDS = 0.1
"""How long to leave new clients waiting when the system can't give them a socket."""
LITTLE_BYTES = 4 << 10
GATHER_SECONDS = 0.001
"""After little was read, how long to let more gather: many slow clients are then read together, at a third the cost."""
REPLY_BYTES_MIN = 4 << 10
"""What a connection may be owed in answers, however many there are."""

_log = logging.getLogger(__name__)

Listener = AbstractContextManager[socket.socket]
"""Enters as a listening non-blocking socket and closes it."""


class ConnectionOptions(Protocol):
    """The options that say how connections are served."""

    @property
    def name(self) -> str: ...

    @property
    def format(self) -> str: ...

    @property
    def max_connections(self) -> int: ...

    @property
    def idle_timeout(self) -> float: ...

    @property
    def max_record_bytes(self) -> int: ...

    @property
    def reply(self) -> bool: ...


class _Connection:
    __slots__ = ("feed", "filled", "has_ended", "is_held", "lent", "replies", "sock")

    def __init__(self, sock: socket.socket, feed: Feed, replies: Replies | None) -> None:
        self.sock, self.feed, self.replies = sock, feed, replies
        # Bytes of the lease it holds; 0 without one.
        self.lent = 0
        # filled: its last read brought all that was allowed, so that more is likely there.
        # is_held: not read from before the client takes answers. has_ended: the client sends no more, but is owed some.
        self.filled = self.is_held = self.has_ended = False

    @property
    def is_owed(self) -> bool:
        return self.replies is not None and self.replies.is_owed


class Connections:
    """The connections of one source, from its listeners to its cancellation."""

    def __init__(self, options: ConnectionOptions, intake: Intake, leases: RecordLeases) -> None:
        self._options, self._intake, self._leases = options, intake, leases
        self._framing = framing_for_format(options.format)
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._open: set[_Connection] = set()
        self._opened = 0
        self._silence = Silence[_Connection](options.idle_timeout)
        self._writer = ReplyWriter(intake, options.idle_timeout, self._cut_off_stalled) if options.reply else None

    async def serve(self, listeners: Sequence[Listener]) -> None:
        """Accept and read until cancelled; then put what was read, leave partial records, and close everything."""
        keep_freed_memory()
        with selectors.DefaultSelector() as self._selector:
            try:
                async with anyio.create_task_group() as self._tasks:
                    for listener in listeners:
                        self._tasks.start_soon(self._accept, listener)
                    if self._writer is not None:
                        self._tasks.start_soon(self._writer.run)
                    await self._read_all()
            except anyio.get_cancelled_exc_class():
                if self._writer is not None:
                    # The reading ends here, but the pipeline still scores what was put: its answers are yet to come.
                    await self._writer.answer_rest(lambda: any(connection.is_owed for connection in self._open))
                raise
            finally:
                for connection in list(self._open):
                    self._close(connection)
                if self._writer is not None:
                    # Last, since each connection unregisters from the writer's selector as it closes.
                    self._writer.close()

    async def _accept(self, listener: Listener) -> None:
        is_troubled = False
        with listener as sock:
            while True:
                await anyio.wait_readable(sock)
                try:
                    self._accept_some(sock)
                    is_troubled = False
                except OSError as error:
                    # One warning for each time of trouble: the tries come ten times a second.
                    if not is_troubled:
                        name = self._options.name
                        _log.warning("source %s can't accept connections, and goes on trying: %s", name, error)
                    is_troubled = True
                    # The client stays in the queue, so that the listener stays readable: without a pause this would
                    # spin.
                    await anyio.sleep(ACCEPT_PAUSE_SECONDS)

    def _accept_some(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_IN_A_ROW):
            try:
                sock, _address = listener.accept()
            except BlockingIOError:
                return
            # This client went away while it waited to be accepted; the next may still be there.
            except ConnectionError:
                continue
            if len(self._open) < self._options.max_connections:
                self._take_in(sock)
            else:
                sock.close()
                self._intake.observer.connection_rejected(self._options.name, "limit")

    def _take_in(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._opened += 1
        name = self._options.name
        partition = Partition(name, f"{self._intake.run_id}-{self._opened}")
        replies = None if self._writer is None else self._writer.replies(sock)
        framer = self._framing.framer(partition, max_record_bytes=self._options.max_record_bytes, origin=replies)
        connection = _Connection(sock, Feed(self._intake, framer, name), replies)
        if replies is not None:
            # Only now: the framer carries the replies, and the connection's feed carries the framer.
            replies.feed, replies.moved = connection.feed, partial(self._replied, connection)
        self._open.add(connection)
        self._intake.observer.connection_opened(name)
        self._await(connection)

    async def _read_all(self) -> None:
        """Read from the connections that have something, each in its turn; cut off those that keep silent."""
        clock = self._intake.clock
        while True:
            ready = self._selector.select(0)
            if not ready:
                with anyio.move_on_after(self._silence.seconds_to_first_due(clock.monotonic())):
                    # An epoll descriptor is readable when one of its sockets is: a single wait serves all connections.
                    await anyio.wait_readable(self._selector.fileno())
                ready = self._selector.select(0)
            started = clock.monotonic()
            size = 0
            for key, _ in ready:
                size += await self._read(key.data, started)
            # As of before the reads: while they waited for room, no client could be heard. `was_busy` takes that time
            # out of the next looks too.
            await self._cut_off_silent(started)
            self._silence.was_busy(clock.monotonic() - started)
            await anyio.sleep(GATHER_SECONDS if size < LITTLE_BYTES else 0)

    async def _read(self, connection: _Connection, now: float) -> int:
        """Read once, as much as the connection may. Returns how many bytes it was."""
        window = self._window(connection)
        if window <= 0:
            self._ignore(connection)
            # `_replied` takes it back up once the client has taken enough of its answers.
            connection.is_held = True
            return 0
        size_max = min(window, self._claim(connection))
        if not size_max:
            self._ignore(connection)
            # In a task of its own: the others are read while this one waits for its lease.
            self._tasks.start_soon(self._await_grant, connection)
            return 0
        # Room comes before the read: between the read and the framing in `push` nothing waits, so that a cancellation
        # can't lose bytes that the system has handed out.
        await connection.feed.room(size_max)
        try:
            size = connection.sock.recv_into(self._buffer, size_max)
        except BlockingIOError:
            # It was readable before the wait for room and is not any more; an empty block hands the room back.
            await connection.feed.push(b"")
            return 0
        except OSError:
            await self._end(connection, cut_off=True)
            return 0
        if size == 0:
            await self._end(connection)
            return 0
        self._silence.begins(connection, now)
        # A copy: all connections are read into the one buffer, and what is framed keeps its bytes.
        await connection.feed.push(bytes(self._buffer[:size]))
        connection.filled = size == size_max
        self._let_go(connection)
        return size

    def _window(self, connection: _Connection) -> int:
        """Return how many bytes may be read before the client has taken more of its answers."""
        if connection.replies is None:
            return READ_BYTES
        # All clients together may be owed an eighth of the memory budget, each an equal part of it.
        share = self._intake.memory.capacity // 8 // max(1, len(self._open))
        return max(share, REPLY_BYTES_MIN) - connection.replies.load

    def _claim(self, connection: _Connection) -> int:
        """Return how many bytes the next read may bring: none if it takes a lease and there is none to have."""
        holds_little = self._holds_little(connection)
        # A lease is for those that send much at once or hold a long record. The many that send little never need one.
        if not connection.lent and (connection.filled or not holds_little):
            connection.lent = self._leases.try_take(self._options.max_record_bytes)
            if connection.lent:
                _widen(connection.sock)
        if connection.lent:
            return READ_BYTES
        return self._leases.allowance - connection.feed.pending if holds_little else 0

    async def _await_grant(self, connection: _Connection) -> None:
        intake, since = self._intake, self._intake.clock.monotonic()
        connection.lent = await self._leases.take(self._options.max_record_bytes)
        intake.observer.source_blocked(self._options.name, intake.clock.monotonic() - since)
        self._await(connection)

    def _let_go(self, connection: _Connection) -> None:
        """Give a lease back that has no use, or that has little while others wait for one."""
        if connection.lent and self._holds_little(connection) and (not connection.filled or self._leases.are_wanted):
            self._give_back(connection)

    def _give_back(self, connection: _Connection) -> None:
        lent, connection.lent = connection.lent, 0
        self._leases.give(lent)

    def _holds_little(self, connection: _Connection) -> bool:
        """Whether what is pending leaves room for a decent read within the allowance."""
        return connection.feed.pending * 2 <= self._leases.allowance

    async def _cut_off_silent(self, now: float) -> None:
        for connection in self._silence.due(now):
            # The client may wait for its answers before it sends on.
            if connection.is_owed:
                self._silence.begins(connection, now)
                continue
            self._intake.observer.connection_rejected(self._options.name, "timeout")
            await self._end(connection, cut_off=True)

    def _await(self, connection: _Connection) -> None:
        self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        self._silence.begins(connection, self._intake.clock.monotonic())

    def _ignore(self, connection: _Connection) -> None:
        self._selector.unregister(connection.sock)
        self._silence.ends(connection)

    async def _end(self, connection: _Connection, *, cut_off: bool = False) -> None:
        self._ignore(connection)
        # A client that was cut off for taking no answers reads as an end in order, but its last record was not whole.
        is_gone = cut_off or (connection.replies is not None and connection.replies.is_gone)
        await connection.feed.end(cut_off=is_gone)
        if connection.is_owed and not is_gone:
            self._give_back(connection)
            # The client has closed its sending side only: the socket stays open until it has its answers.
            connection.has_ended = True
        else:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        self._open.remove(connection)
        if connection.replies is not None:
            # Chunks in the pipeline still hold the replies: their answers must not call back into a closed connection.
            connection.replies.moved = None
            connection.replies.give_up()
        connection.sock.close()
        connection.feed.release()
        self._give_back(connection)
        self._intake.observer.connection_closed(self._options.name)

    def _replied(self, connection: _Connection) -> None:
        """Go on with a client that is owed less than before."""
        if connection.has_ended and not connection.is_owed:
            self._close(connection)
        elif connection.is_held and self._window(connection) > 0:
            connection.is_held = False
            self._await(connection)

    def _cut_off_stalled(self, replies: Replies) -> None:
        """Cut off a client that takes no answers: reading from it then finds the end."""
        self._intake.observer.connection_rejected(self._options.name, "timeout")
        replies.shut_down()


def _widen(sock: socket.socket) -> None:
    """Let the system hold a whole block for the next read."""
    # Linux starts with a window of 64 KiB and may stay there with a client on the same machine, whose blocks then cost
    # twice as much. A low-water mark widens the window, and the system goes on tuning it; SO_RCVBUF would end that. The
    # mark is taken back at once, since a read must not wait for so many bytes.
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, READ_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
