"""Records from HTTP clients: `POST /records` with one record a line. A request is one partition.

Records are taken in while the body comes, and the answer says how many: whatever goes wrong half-way, the first
`received` records of the request are in and no other. A client that is not told yes or no, since it went away, has
left a half record that dies like any other that was cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import KW_ONLY
from functools import cached_property, partial
from typing import Annotated, Literal

import anyio
import msgspec
from pydantic import Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streambatch.addresses import address_of, bind, cause_of, parse_address
from streambatch.codecs.framing import framing_for_format
from streambatch.errors import SourceError
from streambatch.ingest.compression import Corrupt
from streambatch.ingest.connections import Address
from streambatch.ingest.feed import Feed
from streambatch.ingest.grants import Grants, grants_of
from streambatch.ingest.http_connection import IngestConnection
from streambatch.ingest.unpacking import DECOMPRESSORS, TooLarge, Unpacking
from streambatch.options import options
from streambatch.records import Intake, Partition
from streambatch.serving import HttpServer
from streambatch.units import Duration, Size, format_size

PATH = "/records"
RETRY_AFTER_SECONDS = 1
"""When a client that was refused for want of room is asked to come again."""
GRACE_SECONDS = 2.0
"""How long, at a stop, requests may go on sending."""


@options
class HttpSource:
    """Listens on an address and takes in what clients post to /records."""

    listen: str
    """Host and port for clients: `127.0.0.1:9000`, `[::1]:9000`; `0.0.0.0:9000` for every interface."""
    _: KW_ONLY
    name: str = "http"
    max_connections: Annotated[int, Field(ge=1)] = 1024
    """Clients served at once; more are sent away."""
    idle_timeout: Annotated[Duration, Field(gt=0)] = 60.0
    """A client that sends nothing for so long is cut off."""
    format: Literal["jsonl", "csv", "length_prefixed"] = "jsonl"
    """How the body of a request becomes records."""
    max_record_bytes: Annotated[Size, Field(ge=1)] = 1 << 20
    """A longer record is not scored: it becomes a dead letter."""
    max_body_bytes: Annotated[Size, Field(ge=1)] = 64 << 20
    """A request whose body has more, unpacked, is refused from there on."""

    def __post_init__(self) -> None:
        parse_address(self.listen)

    @property
    def is_finite(self) -> bool:
        return False

    @property
    def bound(self) -> str | None:
        """Where it listens, with the port that the system chose for port 0; None while it doesn't."""
        return self._address.value

    async def listening(self) -> str:
        """Wait until it listens. Returns `bound`."""
        return await self._address.wait()

    async def run(self, intake: Intake) -> None:
        """Serve clients until cancelled; requests under way then have GRACE_SECONDS to end. Needs asyncio.

        Raises SourceError when it can't listen, and what `put` raises when the pipeline gives up.
        """
        grants = grants_of(intake.memory)
        with grants.shared_by(self.name, self.max_connections, self.max_record_bytes), ExitStack() as opened:
            try:
                listeners = [opened.enter_context(sock) for sock in await bind(self.listen)]
            except (OSError, UnicodeError) as error:
                raise SourceError(self.name, f"can't listen on {self.listen}: {cause_of(error)}") from error
            try:
                await Requests(self, intake, grants).serve(
                    partial(HttpServer.run_until_cancelled, listeners=listeners),
                    lambda: self._address.set(address_of(listeners[0])),
                )
            finally:
                self._address.clear()

    def acked(self, positions: Mapping[str, int]) -> None:
        """What a request brought can't be asked for again: there is nothing to do."""

    def revoke(self, partition: str) -> None:
        """A request is no other reader's: there is nothing to do."""

    @cached_property
    def _address(self) -> Address:
        return Address()
