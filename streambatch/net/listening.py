"""What all sources that listen on an address have in common: their options' types, their address, nothing to resume.

An option's description is part of its type, so that it stands in one place for all of them.
"""

import socket
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from streambatch.core.errors import SourceError
from streambatch.core.spooling import SpoolOptions
from streambatch.core.units import Duration, Size
from streambatch.net.addresses import address_of, bind, cause_of
from streambatch.net.bound_address import Address

MaxConnections = Annotated[int, Field(ge=1, description="Clients served at once; more are sent away.")]
IdleTimeout = Annotated[Duration, Field(gt=0, description="A client that sends nothing for so long is cut off.")]
MaxRecordBytes = Annotated[
    Size, Field(ge=1, description="A longer record is not scored: it becomes a dead letter.")
]  # fmt: skip
WhenFull = Literal["block", "drop_newest"]
Spool = Annotated[
    SpoolOptions | None,
    Field(
        description="Store what comes in the state_dir before it is scored, so that a crash loses none of it: "
        '`{ max_bytes = "1GiB" }`.'
    ),
]


async def bind_for(
    source: str, listen: str, kind: socket.SocketKind = socket.SOCK_STREAM
) -> tuple[list[socket.socket], str]:
    """Return a source's sockets, as `bind` does, and the address to tell people. Raises SourceError."""
    try:
        socks = await bind(listen, kind)
    except (OSError, UnicodeError) as error:
        allowed = f"source.{source}.listen: allowed is a free address of this machine"
        raise SourceError(source, f"can't listen on {listen}: {cause_of(error)}; {allowed}") from error
    return socks, address_of(socks[0])


class Listening:
    """Where a source listens. What came from a socket can't be asked for again, and there is no end to it."""

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

    def acked(self, positions: Mapping[str, int]) -> None:
        """Without a spool nothing can be read again: there is nothing to do."""

    def revoke(self, partition: str) -> None:
        """What came to a socket is no other reader's: there is nothing to do."""

    @cached_property
    def _address(self) -> Address:
        return Address()
