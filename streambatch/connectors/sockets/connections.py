"""What all sources that accept connections do: accept, read, end.

One task reads them all in turns, into one buffer, and puts what it read: while the pipeline takes nothing, nothing is
read. A read is one synchronous call, and what it brought is framed before anything else can run. So a connection holds
no bytes but its partial record, bounded by `grants`, and what a read returned is put, also by a cancelled task. With
`reply` its answers come on top, bounded by not reading on.
"""

import logging
import selectors
import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import KW_ONLY
from functools import partial
from typing import Annotated, Literal

import anyio
from pydantic import Field

from streambatch.codecs.formats import framing_for_format
from streambatch.connectors.sockets.replies import Replies, ReplyWriter
from streambatch.core.allocator import keep_freed_memory
from streambatch.core.chunks import Partition
from streambatch.core.errors import OptionError
from streambatch.core.feed import Feed
from streambatch.core.grants import Grants, grants_of
from streambatch.core.intake import Intake
from streambatch.core.options import options
from streambatch.core.spooling import check_spool
from streambatch.net.listening import IdleTimeout, Listening, MaxConnections, MaxRecordBytes, Spool, WhenFull

READ_BYTES = 256 << 10
"""The most one read brings; no more than the allowance for a connection without a grant."""
ACCEPTS_IN_A_ROW = 64
ACCEPT_PAUSE_SECONDS = 0.1
"""How long to leave new clients waiting when the system can't give them a socket."""
LITTLE_BYTES = 4 << 10
GATHER_SECONDS = 0.001
"""After little was read, how long to let more gather: many slow clients are then read together, at a third the cost."""
REPLY_BYTES_MIN = 4 << 10
"""What a connection may be owed in answers, however many there are."""
ANSWER_SECONDS = 2.0
"""How long, at a stop, clients wait for an answer after the last one."""
LAST_ANSWERS_SECONDS = 10.0
"""How long a stop may take to answer what was received."""

_log = logging.getLogger(__name__)

Listener = AbstractContextManager[socket.socket]
"""Enters as a listening non-blocking socket and closes it."""


@options
class ConnectionSource(Listening, ABC):
    """What sources that accept connections have in common; they differ in how they listen."""

    _: KW_ONLY
    name: str = "connections"
    # Descriptions are spelt out since those below an attribute are lost on the way to a subclass.
    max_connections: MaxConnections = 1024
    idle_timeout: IdleTimeout = 60.0
    format: Annotated[
        Literal["jsonl", "csv", "length_prefixed"], Field(description="How the bytes of a connection become records.")
    ] = "jsonl"
    max_record_bytes: MaxRecordBytes = 1 << 20
    when_full: Annotated[
        WhenFull, Field(description="While the queue is full, stop reading, or drop what was read.")
    ] = "block"
    reply: Annotated[
        bool, Field(description="Write a line back for every record, in the records' order: its score, or its error.")
    ] = False
    spool: Spool = None

    def __post_init__(self) -> None:
        check_spool(self.spool, max_record_bytes=self.max_record_bytes, when_full=self.when_full, reply=self.reply)
        if self.reply and self.when_full == "drop_newest":
            raise OptionError("when_full", "drop_newest", "block, with reply = true: each record has its answer")

    async def run(self, intake: Intake) -> None:
        """Serve clients until cancelled; what was read by then is put. Raises SourceError when it can't listen."""
        grants = grants_of(intake.memory)
        with grants.shared_by(self.name, self.max_connections, self.max_record_bytes):
            connections = Connections(self, intake, grants)
            listeners, address = await self._listen()
            self._address.set(address)
            try:
                await connections.serve(listeners)
            finally:
                self._address.clear()

    @abstractmethod
    async def _listen(self) -> tuple[Sequence[Listener], str]:
        """Return listeners and the address to tell people. Raises SourceError."""


class _Connection:
    __slots__ = ("feed", "filled", "has_ended", "is_held", "lent", "replies", "sock")

    def __init__(self, sock: socket.socket, feed: Feed, replies: Replies | None) -> None:
        self.sock, self.feed, self.replies = sock, feed, replies
        self.lent = 0
        self.filled = self.is_held = self.has_ended = False

    @property
    def is_owed(self) -> bool:
        return self.replies is not None and self.replies.is_owed


class Connections:
    """The connections of one source, from its listeners to its cancellation."""

    def __init__(self, options: ConnectionSource, intake: Intake, grants: Grants) -> None:
        self._options, self._intake, self._grants = options, intake, grants
        self._source, self._observer, self._clock = options.name, intake.observer, intake.clock
        self._framing = framing_for_format(options.format)
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._open: set[_Connection] = set()
        self._opened = 0
        self._awaited: dict[_Connection, float] = {}
        self._busy_seconds = 0.0
        self._writer = ReplyWriter(intake, options.idle_timeout, self._cut_off_stalled) if options.reply else None
        self._answered: anyio.Event | None = None

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
                    await self._answer_rest(self._writer)
                raise
            finally:
                for connection in list(self._open):
                    self._close(connection)
                if self._writer is not None:
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
                    if not is_troubled:
                        _log.warning("source %s can't accept connections, and goes on trying: %s", self._source, error)
                    is_troubled = True
                    await anyio.sleep(ACCEPT_PAUSE_SECONDS)

    def _accept_some(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_IN_A_ROW):
            try:
                sock, _address = listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            if len(self._open) < self._options.max_connections:
                self._take_in(sock)
            else:
                sock.close()
                self._observer.connection_rejected(self._source, "limit")

    def _take_in(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._opened += 1
        partition = Partition(self._source, f"{self._intake.run_id}-{self._opened}")
        replies = None if self._writer is None else self._writer.replies(sock)
        framer = self._framing.framer(partition, max_record_bytes=self._options.max_record_bytes, origin=replies)
        connection = _Connection(sock, Feed(self._intake, framer, self._source), replies)
        if replies is not None:
            replies.feed, replies.moved = connection.feed, partial(self._replied, connection)
        self._open.add(connection)
        self._observer.connection_opened(self._source)
        self._await(connection)

    async def _read_all(self) -> None:
        """Read from whichever connections have something, each in its turn; cut off those that keep silent."""
        while True:
            ready = self._selector.select(0)
            if not ready:
                with anyio.move_on_after(self._seconds_to_first_due()):
                    await anyio.wait_readable(self._selector.fileno())
                ready = self._selector.select(0)
            started = self._clock.monotonic()
            now = started - self._busy_seconds
            size = 0
            for key, _ in ready:
                size += await self._read(key.data, now)
            await self._cut_off_silent(now)
            self._busy_seconds += self._clock.monotonic() - started
            await anyio.sleep(GATHER_SECONDS if size < LITTLE_BYTES else 0)

    async def _read(self, connection: _Connection, now: float) -> int:
        """Read once, as much as the connection may. Returns how many bytes it was."""
        window = self._window(connection)
        if window <= 0:
            self._ignore(connection)
            connection.is_held = True
            return 0
        size_max = min(window, self._claim(connection))
        if not size_max:
            self._ignore(connection)
            self._tasks.start_soon(self._await_grant, connection)
            return 0
        await connection.feed.room(size_max)
        try:
            size = connection.sock.recv_into(self._buffer, size_max)
        except BlockingIOError:
            await connection.feed.push(b"")
            return 0
        except OSError:
            await self._end(connection, cut_off=True)
            return 0
        if size == 0:
            await self._end(connection)
            return 0
        del self._awaited[connection]
        self._awaited[connection] = now
        await connection.feed.push(bytes(self._buffer[:size]))
        connection.filled = size == size_max
        self._let_go(connection)
        return size

    def _window(self, connection: _Connection) -> int:
        """Return how many bytes may be read before the client has taken more of its answers."""
        if connection.replies is None:
            return READ_BYTES
        share = self._intake.memory.capacity // 8 // max(1, len(self._open))
        return max(share, REPLY_BYTES_MIN) - connection.replies.load

    def _claim(self, connection: _Connection) -> int:
        """Return how many bytes the next read may bring: none if it takes a grant and there is none to have."""
        holds_little = self._holds_little(connection)
        if not connection.lent and (connection.filled or not holds_little):
            connection.lent = self._grants.try_take(self._options.max_record_bytes)
            if connection.lent:
                _widen(connection.sock)
        if connection.lent:
            return READ_BYTES
        return self._grants.allowance - connection.feed.pending if holds_little else 0

    async def _await_grant(self, connection: _Connection) -> None:
        since = self._clock.monotonic()
        connection.lent = await self._grants.take(self._options.max_record_bytes)
        self._observer.source_blocked(self._source, self._clock.monotonic() - since)
        self._await(connection)

    def _let_go(self, connection: _Connection) -> None:
        """Give a grant back that has no use, or that has little while others wait for one."""
        if connection.lent and self._holds_little(connection) and (not connection.filled or self._grants.are_wanted):
            self._give_back(connection)

    def _give_back(self, connection: _Connection) -> None:
        lent, connection.lent = connection.lent, 0
        self._grants.give(lent)

    def _holds_little(self, connection: _Connection) -> bool:
        """Tell whether what is pending leaves room for a decent read within the allowance."""
        return connection.feed.pending * 2 <= self._grants.allowance

    def _seconds_to_first_due(self) -> float | None:
        """Return how long until the connection that has kept silent longest is cut off; None if there is none.

        Time in which no connection could be read, since this end was busy or blocked, is not held against any.
        """
        for since in self._awaited.values():
            now = self._clock.monotonic() - self._busy_seconds
            return max(0.0, since + self._options.idle_timeout - now)
        return None

    async def _cut_off_silent(self, now: float) -> None:
        silent_since = now - self._options.idle_timeout
        while self._awaited:
            connection, since = next(iter(self._awaited.items()))
            if since > silent_since:
                return
            if connection.is_owed:
                del self._awaited[connection]
                self._awaited[connection] = now
                continue
            self._observer.connection_rejected(self._source, "timeout")
            await self._end(connection, cut_off=True)

    def _await(self, connection: _Connection) -> None:
        self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        self._awaited[connection] = self._clock.monotonic() - self._busy_seconds

    def _ignore(self, connection: _Connection) -> None:
        self._selector.unregister(connection.sock)
        del self._awaited[connection]

    async def _end(self, connection: _Connection, *, cut_off: bool = False) -> None:
        self._ignore(connection)
        is_gone = cut_off or (connection.replies is not None and connection.replies.is_gone)
        await connection.feed.end(cut_off=is_gone)
        if connection.is_owed and not is_gone:
            self._give_back(connection)
            connection.has_ended = True
        else:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        self._open.remove(connection)
        if connection.replies is not None:
            connection.replies.moved = None
            connection.replies.give_up()
        connection.sock.close()
        connection.feed.release()
        self._give_back(connection)
        self._observer.connection_closed(self._source)

    def _replied(self, connection: _Connection) -> None:
        """Learn that a client is owed less than before."""
        if connection.has_ended and not connection.is_owed:
            self._close(connection)
        elif connection.is_held and self._window(connection) > 0:
            connection.is_held = False
            self._await(connection)
        if self._answered is not None:
            self._answered.set()

    def _cut_off_stalled(self, replies: Replies) -> None:
        """Cut off a client that takes no answers: reading from it then finds the end."""
        self._observer.connection_rejected(self._source, "timeout")
        replies.shut_down()

    async def _answer_rest(self, writer: ReplyWriter) -> None:
        """Go on answering what was put, for as long as that gets on."""
        with anyio.move_on_after(LAST_ANSWERS_SECONDS, shield=True):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(writer.run)
                is_moving = True
                while is_moving and any(connection.is_owed for connection in self._open):
                    self._answered = anyio.Event()
                    with anyio.move_on_after(ANSWER_SECONDS) as waiting:
                        await self._answered.wait()
                    is_moving = not waiting.cancelled_caught
                tasks.cancel_scope.cancel()


def _widen(sock: socket.socket) -> None:
    """Let the system hold a whole block for the next read.

    Linux starts with a window of 64 KiB and may stay there with a client on the same machine, whose blocks then cost
    twice as much. It widens what a low-water mark asks for, and goes on tuning, which a fixed buffer would end.
    """
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, READ_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
