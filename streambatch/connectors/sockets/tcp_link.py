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


class _Kept:
    """A payload. number: the how manieth it is, from 1. end: where it ends on this connection; infinity until sent."""

    __slots__ = ("end", "number", "payload")

    def __init__(self, number: int, end: float, payload: bytes) -> None:
        self.number, self.end, self.payload = number, end, payload


class Link:
    """Sends payloads in order. `write` comes from one task at a time, `sync` from any."""

    def __init__(self, sink: str, address: str, connect_timeout: float, timeout: float) -> None:
        self._sink, self._address = sink, address
        self._connect_timeout, self._timeout = connect_timeout, timeout
        self._sending = anyio.Lock()
        self._stream: SocketStream | None = None
        self.is_open = False
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
            await self._send(payload)
            self._written += 1
            self._length += len(payload)
            self._kept.append(_Kept(self._written, self._sent, payload))
            self._look()

    async def sync(self) -> int:
        """Wait until all that was written is confirmed; see `TcpSink.sync`."""
        written, length = self._written, self._length
        if self._misses(written) and self._is_over and self.is_open:
            async with self._sending:
                await self._connect()
        pause, confirmed, since = FIRST_LOOK_SECONDS, self._confirmed, anyio.current_time()
        while self._misses(written):
            if self._is_over:
                raise self._outage(f"lost the connection to {self._address}")
            if self._confirmed != confirmed:
                confirmed, since = self._confirmed, anyio.current_time()
            elif anyio.current_time() - since >= self._timeout:
                await self._drop()
                raise self._outage(f"{self._address} took in nothing for {self._timeout:g} s")
            await anyio.sleep(pause)
            pause = min(2 * pause, LONGEST_LOOK_SECONDS)
        return length

    async def close(self) -> None:
        """End the connection, after all that was sent."""
        self.is_open = False
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()

    def _reset(self, header: bytes) -> None:
        self._header, self._is_over = header, True
        self._kept: deque[_Kept] = deque()
        self._written = self._sent = self._confirmed = 0
        self._length = len(header)

    async def _connect(self) -> None:
        """Have a connection on which all that is kept was sent."""
        if not self._is_over:
            return
        await self._drop()
        host, port = parse_address(self._address, "address")
        try:
            with anyio.fail_after(self._connect_timeout):
                self._stream = await anyio.connect_tcp(host, port)
        except TimeoutError as error:
            raise self._outage(f"{self._address} took more than {self._connect_timeout:g} s") from error
        except OSError as error:
            raise self._outage(f"can't connect to {self._address}: {cause_of(error)}") from error
        self._is_over, self._sent, self._confirmed = False, 0, 0
        for kept in self._kept:
            kept.end = inf
        await self._send(self._header)
        for kept in list(self._kept):
            await self._send(kept.payload)
            kept.end = self._sent

    async def _send(self, payload: bytes) -> None:
        """Send all of it; failed or cancelled half-way, the connection is not used again."""
        is_done = False
        try:
            for start in range(0, len(payload), SLICE):
                if self._stream is None:
                    raise anyio.ClosedResourceError
                block = payload[start : start + SLICE]
                with anyio.fail_after(self._timeout):
                    await self._stream.send(block)
                self._sent += len(block)
            is_done = True
        except TimeoutError as error:
            self._take_back()
            raise self._outage(f"{self._address} took in nothing for {self._timeout:g} s") from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise self._outage(f"lost the connection to {self._address}") from (error.__cause__ or error)
        finally:
            if not is_done:
                await self._drop()

    def _take_back(self) -> None:
        """Have what the system still holds thrown away with the connection: it will be sent again."""
        if self._stream is not None:
            linger = struct.pack("ii", 1, 0)
            self._stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async def _drop(self) -> None:
        stream, self._stream, self._is_over = self._stream, None, True
        if stream is not None:
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)

    def _misses(self, written: int) -> bool:
        """Tell whether one of the first so many payloads is not confirmed."""
        self._look()
        return bool(self._kept) and self._kept[0].number <= written

    def _look(self) -> None:
        """Forget what was confirmed, and find out whether the connection is over."""
        if self._stream is None:
            return
        unconfirmed = _unconfirmed(self._stream.extra(SocketAttribute.raw_socket))
        if unconfirmed is None:
            self._is_over = True
            return
        self._confirmed = max(self._confirmed, self._sent - unconfirmed)
        while self._kept and self._kept[0].end <= self._confirmed:
            self._kept.popleft()

    def _outage(self, problem: str) -> SinkOutage:
        return SinkOutage(self._sink, problem)


def _unconfirmed(sock: socket.socket) -> int | None:
    """Return how many of the bytes sent the other side's system has not confirmed; None when the connection is over."""
    if sock.fileno() < 0:
        return None
    try:
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSED:
            return None
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except (OSError, AttributeError):
        return 0  # a system that doesn't tell: what it took over counts as sent
