"""Records from TCP clients. A connection is one partition; its bytes are read once and can't be asked for again."""

import errno
import re
import socket
from collections.abc import Iterable
from dataclasses import KW_ONLY
from typing import Any

import anyio

from streambatch.errors import OptionError, SourceError
from streambatch.ingest.connections import BACKLOG, ConnectionSource
from streambatch.options import options

_ADDRESS = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):(\d{1,5})")


@options
class TcpSource(ConnectionSource):
    """Listens on an address and reads what every client sends until the client closes."""

    listen: str
    """Host and port for clients: `127.0.0.1:9000`, `[::1]:9000`; `0.0.0.0:9000` for every interface."""
    _: KW_ONLY
    name: str = "tcp"

    def __post_init__(self) -> None:
        parse_address(self.listen)

    async def _listen(self) -> tuple[list[socket.socket], str]:
        host, port = parse_address(self.listen)
        try:
            found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            listeners = _bind((family, address) for family, _, _, _, address in dict.fromkeys(found))
        except (OSError, UnicodeError) as error:
            cause = getattr(error, "strerror", None) or error
            raise SourceError(self.name, f"can't listen on {self.listen}: {cause}") from error
        return listeners, format_address(*listeners[0].getsockname()[:2])


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[IPv6]:port`. Raises OptionError for anything else."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > 65535:
        raise OptionError("listen", repr(text), "host:port, such as 127.0.0.1:9000 or [::1]:9000")
    return match[1] or match[2], int(match[3])


def format_address(host: str, port: int) -> str:
    """Return `host:port`, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind(addresses: Iterable[tuple[int, Any]]) -> list[socket.socket]:
    """Return a listening socket for every address of a host, all on one port. Raises OSError."""
    listeners: list[socket.socket] = []
    missing = OSError("no such address")
    port = 0
    try:
        for family, (host, port_asked, *rest) in addresses:
            try:
                listeners.append(_listener(family, (host, port or port_asked, *rest)))
            except OSError as error:
                # A name such as localhost often has an IPv6 address where the machine has no IPv6.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
            else:
                port = listeners[0].getsockname()[1]
        if not listeners:
            raise missing
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listener(family: int, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
