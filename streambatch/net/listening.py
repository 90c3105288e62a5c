"""Option types, binding and address shared by all sources that listen on an address.

An option's description is part of its type, so that it stands in one place for all of them.
"""

import socket
from typing import Annotated

from pydantic import Field

from streambatch.core.errors import SourceError
from streambatch.core.parts import Reader
from streambatch.core.signal import Signal
from streambatch.core.spooling import SpoolOptions
from streambatch.core.units import Duration, Size
from streambatch.net.addresses import address_of, bind, cause_of

MaxConnections = Annotated[int, Field(ge=1, description="Clients served at once; more are sent away.")]
IdleTimeout = Annotated[Duration, Field(gt=0, description="A client that sends nothing for so long is cut off.")]
MaxRecordBytes = Annotated[
    Size, Field(ge=1, description="A longer record is not scored: it becomes a dead letter.")
]  # fmt: skip
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


class ListeningReader(Reader):
    """The reader of a source that listens on an address."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._address: str | None = None
        self._listens = Signal()

    @property
    def address(self) -> str | None:
        return self._address

    async def listening(self) -> str:
        while self._address is None:
            await self._listens.wait()
        return self._address

    def _listens_on(self, address: str) -> None:
        """Publish the address, once clients can connect to it."""
        self._address = address
        self._listens.notify()

    def _listens_no_more(self) -> None:
        self._address = None
