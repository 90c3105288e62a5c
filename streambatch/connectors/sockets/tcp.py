"""Records from TCP clients. A connection is one partition; its bytes are read once and can't be asked for again."""

import socket
from collections.abc import Iterable
from dataclasses import KW_ONLY

from streambatch.connectors.sockets.connections import ConnectionReader, ConnectionSource
from streambatch.core.options import options
from streambatch.core.parts import Claim, Site
from streambatch.net.addresses import ListenAddress, parse_address
from streambatch.net.listening import bind_for


@options
class TcpSource(ConnectionSource):
    """Listens on an address and reads what every client sends until the client closes."""

    listen: ListenAddress
    """Host and port for clients: `127.0.0.1:9000`, `[::1]:9000`; `0.0.0.0:9000` for every interface."""
    _: KW_ONLY
    name: str = "tcp"

    def __post_init__(self) -> None:
        ConnectionSource.__post_init__(self)
        parse_address(self.listen)

    def build(self, site: Site) -> "TcpReader":
        return TcpReader(self)

    def claims(self) -> Iterable[Claim]:
        return [Claim("tcp", "listen", self.listen)]


class TcpReader(ConnectionReader):
    """Reads from the clients that connect to an address."""

    def __init__(self, options: TcpSource) -> None:
        super().__init__(options)
        self._listen = options.listen

    async def _open(self) -> tuple[list[socket.socket], str]:
        return await bind_for(self.name, self._listen)
