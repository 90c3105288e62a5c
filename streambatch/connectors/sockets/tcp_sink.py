"""The sink that sends scores to a TCP server.

At least once, as far as TCP can tell: what the server's system has not confirmed is kept, and sent again over the next
connection, ahead of what follows. Writes are repeated whole, never from their middle, so that a torn one leaves a cut
line at the end of its connection and comes again over the next. What a server had received and not read when it died
is lost, and nothing tells.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from streambatch.codecs.formats import TextFormat
from streambatch.connectors.sockets.tcp_link import Link, Peer
from streambatch.core.errors import SinkError
from streambatch.core.options import options
from streambatch.core.parts import Sink, Site, Writer
from streambatch.core.units import Duration
from streambatch.net.addresses import parse_address


@options
class TcpSink(Sink):
    """Send scores over one connection, and over a new one when it is lost or stalls."""

    address: str
    """Host and port of the server: `127.0.0.1:9100`."""
    format: TextFormat = "jsonl"
    """`jsonl`: one JSON object a line. `csv`: a header, on each connection, and one row a record."""
    connect_timeout: Annotated[Duration, Field(gt=0)] = 10.0
    """How long the server may take to accept the connection."""
    timeout: Annotated[Duration, Field(gt=0)] = 30.0
    """How long the server may take in nothing before the connection is given up and replaced."""
    name: str = "tcp"
    """Label of the sink in metrics and messages."""

    def __post_init__(self) -> None:
        parse_address(self.address, "address")

    def build(self, site: Site) -> TcpWriter:
        return TcpWriter(self)


class TcpWriter(Writer):
    """Sends over one connection at a time."""

    def __init__(self, options: TcpSink) -> None:
        self.name, self._address = options.name, options.address
        self._link = Link(Peer(options.name, options.address, options.connect_timeout, options.timeout))

    async def open(self, header: bytes) -> None:
        """Connect and send the header. Raises SinkOutage when no server is there; it may be called again then."""
        await self._link.open(header)

    async def write(self, payload: bytes) -> None:
        """Send whole records; wait as long as the server takes some, however slowly.

        Raises SinkOutage when the connection is lost or stalls; repeated, the write makes a new one. Cancelled,
        it may have sent any part of the payload.
        """
        if not self._link.is_open:
            raise SinkError(self.name, f"not connected to {self._address}")
        await self._link.write(payload)

    async def sync(self) -> int:
        """Wait until the server's system has all that was written.

        Returns the bytes written since `open`. Raises SinkOutage as `write` does; called again, it sends what is
        missing again.
        """
        return await self._link.sync()

    async def close(self) -> None:
        """End the connection, after all that was sent."""
        await self._link.close()
