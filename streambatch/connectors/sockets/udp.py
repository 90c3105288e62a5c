"""Records from UDP datagrams: as many as are there become one chunk.

A datagram holds whole records, so its end ends the last of them. Datagrams that find no room in the system's buffer are
lost. They are counted: the system says how many there were.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import KW_ONLY
from typing import Annotated, Literal

import anyio
from anyio.lowlevel import checkpoint
from pydantic import Field

from streambatch.codecs.formats import framing_for_format
from streambatch.core.allocator import keep_freed_memory
from streambatch.core.chunks import Partition
from streambatch.core.feed import Feed
from streambatch.core.intake import Intake
from streambatch.core.options import options
from streambatch.core.parts import Claim, Site, Source, WhenFull
from streambatch.core.spooling import check_spool
from streambatch.core.units import Size, format_size
from streambatch.net.addresses import ListenAddress, parse_address
from streambatch.net.listening import ListeningReader, MaxRecordBytes, Spool, bind_for

DATAGRAM_BYTES_MAX = 1 << 16
READ_BYTES = 256 << 10
"""Bytes of datagrams that become one chunk, and a datagram more."""
GATHER_SECONDS = 0.001
"""After few datagrams, how long to let more gather: they are then read together."""
FEW_BYTES = 4 << 10

_NEWLINE = 10
# Numbers from Linux's headers (asm-generic/socket.h, linux/sock_diag.h): Python's socket module has no names for them.
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("9I")
_DROPS = 8
_SO_RCVBUFFORCE = 33

_log = logging.getLogger(__name__)


@options
class UdpSource(Source):
    """Listens on an address and reads the datagrams that come there.

    What the system drops is told to the observer when reading goes on.
    """

    listen: ListenAddress
    """Host and port: `127.0.0.1:9000`, `[::1]:9000`; `0.0.0.0:9000` for every interface."""
    _: KW_ONLY
    name: str = "udp"
    format: Literal["jsonl"] = "jsonl"
    """How a datagram becomes records: one a line, the last with or without an ending."""
    max_record_bytes: MaxRecordBytes = 1 << 20
    when_full: WhenFull = "block"
    """While the queue is full, stop reading, so that the system drops, or drop what was read. Either is counted."""
    receive_buffer: Annotated[Size, Field(ge=4096)] = 4 << 20
    """What the system is asked to hold while nothing is read. Linux counts about 800 bytes for a small datagram, and
    allows no more than its net.core.rmem_max to a process that is not privileged."""
    spool: Spool = None

    def __post_init__(self) -> None:
        parse_address(self.listen)
        check_spool(self.spool, max_record_bytes=self.max_record_bytes, when_full=self.when_full)

    def build(self, site: Site) -> UdpReader:
        return UdpReader(self)

    def claims(self) -> Iterable[Claim]:
        return [Claim("udp", "listen", self.listen)]


class UdpReader(ListeningReader):
    """Reads the datagrams that come to an address."""

    def __init__(self, options: UdpSource) -> None:
        super().__init__(options.name)
        self._options = options

    async def run(self, intake: Intake) -> None:
        """Read until cancelled; what was read by then is put. Raises SourceError when it can't listen."""
        keep_freed_memory()
        with ExitStack() as opened:
            socks, address = await bind_for(self.name, self._options.listen, socket.SOCK_DGRAM)
            for sock in socks:
                opened.enter_context(sock)
            for sock in socks:
                self._widen(sock)
            self._listens_on(address)
            datagrams = Datagrams(self._options, intake)
            try:
                async with anyio.create_task_group() as tasks:
                    for sock in socks:
                        tasks.start_soon(datagrams.read, sock)
            finally:
                datagrams.release()
                self._listens_no_more()

    def _widen(self, sock: socket.socket) -> None:
        """Enlarge the system's receive buffer; log a warning if it stays smaller than asked for."""
        asked = self._options.receive_buffer
        with suppress(OSError):
            # Goes beyond net.core.rmem_max, which only a process with CAP_NET_ADMIN may do.
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, asked)
        # Linux doubles what it is asked for, to pay for its own bookkeeping, and reports the double.
        got = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
        if got < asked:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, asked)
            got = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
        if got < asked:
            sizes = format_size(asked), format_size(got)
            _log.warning("source %s: asked for a receive buffer of %s, got %s", self.name, *sizes)


class Datagrams:
    """The datagrams of one source: one partition, whichever of its sockets they come by."""

    def __init__(self, options: UdpSource, intake: Intake) -> None:
        self._intake, self._source = intake, options.name
        framer = framing_for_format(options.format).framer(
            Partition(options.name, f"{intake.run_id}-1"), max_record_bytes=options.max_record_bytes
        )
        self._feed = Feed(intake, framer, options.name)
        self._buffer = bytearray(READ_BYTES + DATAGRAM_BYTES_MAX)
        # All sockets share the buffer and the feed, so they take turns.
        self._turn = anyio.Lock()

    async def read(self, sock: socket.socket) -> None:
        """Read one socket until cancelled; what it brought is put."""
        drops = Drops(sock)
        try:
            while True:
                await anyio.wait_readable(sock)
                async with self._turn:
                    size = await self._read_some(sock)
                self._tell(drops)
                await anyio.sleep(GATHER_SECONDS) if size < FEW_BYTES else await checkpoint()
        finally:
            self._tell(drops)

    def release(self) -> None:
        """Give back what was reserved for a read that won't be made."""
        self._feed.release()

    def _tell(self, drops: Drops) -> None:
        lost = drops.since_last()
        if lost:
            self._intake.observer.datagrams_dropped(self._source, lost)

    async def _read_some(self, sock: socket.socket) -> int:
        await self._feed.room(len(self._buffer))
        size = self._gather(sock)
        await self._feed.push(bytes(memoryview(self._buffer)[:size]))
        return size

    def _gather(self, sock: socket.socket) -> int:
        """Fill the buffer with the datagrams that are there, each ended by a newline. Returns its bytes."""
        buffer, end = self._buffer, 0
        view = memoryview(buffer)
        try:
            while end < READ_BYTES:
                # A byte is left for the newline. The buffer is a whole datagram longer than READ_BYTES, so the last one
                # always fits.
                size = sock.recv_into(view[end:], DATAGRAM_BYTES_MAX - 1)
                end += size
                # An empty datagram is no record: a newline of its own would make one of it.
                if size and buffer[end - 1] != _NEWLINE:
                    buffer[end] = _NEWLINE
                    end += 1
        except BlockingIOError:
            pass
        return end


class Drops:
    """How many datagrams the system dropped for want of room, or as corrupt, since they were last asked for."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._seen = 0

    def since_last(self) -> int:
        """Return the datagrams dropped since the last call; 0 on a system that doesn't tell."""
        try:
            found = self._sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        except OSError:
            return 0
        seen: int = _MEMINFO.unpack(found)[_DROPS]
        # The system's counter has 32 bits and starts over at its end.
        dropped, self._seen = (seen - self._seen) & 0xFFFFFFFF, seen
        return dropped
