"""One TCP connection after another to one address, and what is not known to have come through.

Every payload stays in `_kept` until the system on the other side has confirmed all of its bytes; a new connection
begins with the header and what is kept. No more is kept than the system buffers of one connection, and one payload.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from collections import deque
from math import inf
from typing import NamedTuple

import anyio
from anyio.abc import SocketAttribute, SocketStream

from streambatch.core.errors import SinkOutage
from streambatch.net.addresses import cause_of, parse_address

SLICE = 64 << 10
"""Bytes that the other side has to take within the time-out."""
FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.001, 0.05
"""How long to wait before looking again what was confirmed: there is no event for it."""
_CLOSED = 7
"""TCP_CLOSE, as the system names the state of a connection that is over."""


class Peer(NamedTuple):
    """The server that a sink sends to."""

    sink: str
    """The name of the sink, for messages."""
    address: str
    connect_timeout: float
    """Seconds the server may take to accept a connection."""
    timeout: float
    """Seconds the server may take in nothing."""

    def outage(self, problem: str) -> SinkOutage:
        return SinkOutage(self.sink, problem)


class _Kept:
    """A payload that is not confirmed."""

    __slots__ = ("end", "number", "payload")

    def __init__(self, number: int, end: float, payload: bytes) -> None:
        self.payload = payload
        self.number = number
        """Its sequence number, from 1."""
        self.end = end
        """Where it ends on the present connection; infinity until it is sent there."""


class Link:
    """Sends payloads in order. `write` comes from one task at a time, `sync` from any."""

    def __init__(self, peer: Peer) -> None:
        self.is_open = False
        self._peer = peer
        self._sending = anyio.Lock()
        self._connection = _Connection(peer)
        self._reset(b"")

    async def open(self, header: bytes) -> None:
        """Connect and send the header, with nothing else to send. Raises SinkOutage."""
        await self.close()
        self._reset(header)
        async with self._sending:
            await self._connect()
        self.is_open = True

    async def write(self, payload: bytes) -> None:
        """Send a payload and keep it until it is confirmed. Raises SinkOutage; it is then not kept."""
        async with self._sending:
            await self._connect()
            await self._connection.send(payload)
            self._written += 1
            self._length += len(payload)
            # Kept only once it was sent: the caller repeats a write that fails, and must not find it sent by `_connect`
            # as well.
            self._kept.append(_Kept(self._written, self._connection.sent, payload))
            self._look()

    async def sync(self) -> int:
        """Wait until all that was written is confirmed; see `TcpWriter.sync`."""
        # As of now: writes may go on meanwhile, and this must not wait for theirs.
        written, length, connection, timeout = self._written, self._length, self._connection, self._peer.timeout
        # There may be no further write that would send again what a lost connection took with it.
        if self._misses(written) and connection.is_over and self.is_open:
            async with self._sending:
                await self._connect()
        pause, confirmed, since = FIRST_LOOK_SECONDS, connection.confirmed, anyio.current_time()
        while self._misses(written):
            if connection.is_over:
                raise self._peer.outage(f"lost the connection to {self._peer.address}")
            if connection.confirmed != confirmed:
                confirmed, since = connection.confirmed, anyio.current_time()
            elif anyio.current_time() - since >= timeout:
                await connection.drop()
                raise self._peer.outage(f"{self._peer.address} took in nothing for {timeout:g} s")
            await anyio.sleep(pause)
            pause = min(2 * pause, LONGEST_LOOK_SECONDS)
        return length

    async def close(self) -> None:
        """End the connection, after all that was sent."""
        self.is_open = False
        await self._connection.close()

    def _reset(self, header: bytes) -> None:
        self._header = header
        self._kept: deque[_Kept] = deque()
        self._written, self._length = 0, len(header)
        self._connection.is_over = True

    async def _connect(self) -> None:
        """Make sure of a connection on which all that is kept was sent. Raises SinkOutage."""
        if not self._connection.is_over:
            return
        await self._connection.open()
        # None of it is on the new connection yet. A `sync` may look between two sends below, and would take a payload
        # with an end from the old connection for confirmed.
        for kept in self._kept:
            kept.end = inf
        await self._connection.send(self._header)
        # A copy, since that look drops what is confirmed from the deque.
        for kept in list(self._kept):
            await self._connection.send(kept.payload)
            kept.end = self._connection.sent

    def _misses(self, written: int) -> bool:
        """Whether one of the first `written` payloads is not confirmed."""
        self._look()
        return bool(self._kept) and self._kept[0].number <= written

    def _look(self) -> None:
        """Forget what was confirmed."""
        self._connection.look()
        while self._kept and self._kept[0].end <= self._connection.confirmed:
            self._kept.popleft()


class _Connection:
    """The present connection. sent, confirmed: bytes on it. is_over: whether nothing more can be sent over it."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stream: SocketStream | None = None
        self.is_over = True
        self.sent = self.confirmed = 0

    async def open(self) -> None:
        """Connect in place of the connection that was. Raises SinkOutage."""
        await self.drop()
        peer = self._peer
        host, port = parse_address(peer.address, "address")
        try:
            with anyio.fail_after(peer.connect_timeout):
                self._stream = await anyio.connect_tcp(host, port)
        except TimeoutError as error:
            raise peer.outage(f"{peer.address} took more than {peer.connect_timeout:g} s") from error
        except OSError as error:
            raise peer.outage(f"can't connect to {peer.address}: {cause_of(error)}") from error
        self.is_over, self.sent, self.confirmed = False, 0, 0

    async def send(self, payload: bytes) -> None:
        """Send all of it; failed or cancelled half-way, the connection is not used again. Raises SinkOutage."""
        is_done, peer = False, self._peer
        try:
            for start in range(0, len(payload), SLICE):
                if self._stream is None:
                    raise anyio.ClosedResourceError
                block = payload[start : start + SLICE]
                # A time-out for each slice: a slow server that takes in a little all the time has not stalled.
                with anyio.fail_after(peer.timeout):
                    await self._stream.send(block)
                self.sent += len(block)
            is_done = True
        except TimeoutError as error:
            self._take_back()
            raise peer.outage(f"{peer.address} took in nothing for {peer.timeout:g} s") from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise peer.outage(f"lost the connection to {peer.address}") from (error.__cause__ or error)
        finally:
            # A payload torn in its middle can't be completed here: the next connection begins with all of it.
            if not is_done:
                await self.drop()

    def look(self) -> None:
        """Find out how much is confirmed, and whether the connection is over."""
        if self._stream is None:
            return
        unconfirmed = _unconfirmed(self._stream.extra(SocketAttribute.raw_socket))
        if unconfirmed is None:
            self.is_over = True
        else:
            # While a slice is sent, the system counts its bytes before `sent` does: the difference may go back for a
            # moment.
            self.confirmed = max(self.confirmed, self.sent - unconfirmed)

    async def drop(self) -> None:
        """End the connection at once."""
        stream, self._stream, self.is_over = self._stream, None, True
        if stream is not None:
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)

    async def close(self) -> None:
        """End the connection after all that was sent."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()

    def _take_back(self) -> None:
        """Make the system drop the bytes it has not sent when the connection is closed."""
        if self._stream is not None:
            # Lingering for 0 seconds: by default the system would go on sending what the next connection sends again.
            linger = struct.pack("ii", 1, 0)
            self._stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def _unconfirmed(sock: socket.socket) -> int | None:
    """Return how many of the bytes sent the other side's system has not confirmed; None when the connection is over."""
    if sock.fileno() < 0:
        return None
    try:
        # The first byte of what TCP_INFO returns is the state. On a connection that is over nothing more is confirmed,
        # whatever its queue says.
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSED:
            return None
        # For a TCP socket this counts what was sent and not acknowledged together with what was not sent.
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except (OSError, AttributeError):
        # On a system that doesn't tell, what it took over counts as confirmed.
        return 0
