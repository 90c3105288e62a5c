"""The sink that sends scores to a TCP server. What was sent can't be taken back, and nobody says that it came."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal

import anyio
from anyio.abc import SocketStream
from pydantic import Field

from streambatch.addresses import cause_of, parse_address
from streambatch.errors import SinkError
from streambatch.options import options
from streambatch.units import Duration


@options
class TcpSink:
    """Send scores over one connection. A lost one ends the run: what the other side has read of it is not known."""

    address: str
    """Host and port of the server: `127.0.0.1:9100`."""
    format: Literal["jsonl", "csv"] = "jsonl"
    """`jsonl`: one JSON object a line. `csv`: a header and one row a record."""
    connect_timeout: Annotated[Duration, Field(gt=0)] = 10.0
    """How long the server may take to accept the connection."""
    name: str = "tcp"
    """Label of the sink in metrics and messages."""

    def __post_init__(self) -> None:
        parse_address(self.address, "address")

    async def open(self, header: bytes) -> None:
        """Connect and send the header. Raises SinkError when nobody is there."""
        host, port = parse_address(self.address, "address")
        try:
            with anyio.fail_after(self.connect_timeout):
                self._link.stream = await anyio.connect_tcp(host, port)
        except TimeoutError as error:
            raise SinkError(self.name, f"{self.address} took more than {self.connect_timeout:g} s") from error
        except OSError as error:
            raise SinkError(self.name, f"can't connect to {self.address}: {cause_of(error)}") from error
        self._link.length = 0
        await self.write(header)

    async def write(self, payload: bytes) -> None:
        """Send whole records; wait as long as the server takes none. Raises SinkError when the connection is lost."""
        if self._link.stream is None:
            raise SinkError(self.name, f"not connected to {self.address}")
        try:
            await self._link.stream.send(payload)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise SinkError(self.name, f"lost the connection to {self.address}") from (error.__cause__ or error)
        self._link.length += len(payload)

    async def sync(self) -> int:
        """Return the bytes sent since `open`: what becomes of them is the server's."""
        return self._link.length

    async def close(self) -> None:
        """End the connection, after all that was sent."""
        stream, self._link.stream = self._link.stream, None
        if stream is not None:
            await stream.aclose()

    @cached_property
    def _link(self) -> _Link:
        return _Link()


class _Link:
    stream: SocketStream | None = None
    length = 0
