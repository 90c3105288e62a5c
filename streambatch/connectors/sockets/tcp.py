"""Records from TCP clients. A connection is one partition; its bytes are read once and can't be asked for again."""

import socket
from dataclasses import KW_ONLY

from streambatch.connectors.sockets.connections import ConnectionSource
from streambatch.core.options import options
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

    async def _listen(self) -> tuple[list[socket.socket], str]:
        return await bind_for(self.name, self.listen)
