"""Addresses as people write them, `host:port`, and sockets bound to every address that a name stands for."""

from __future__ import annotations

import errno
import os
import re
import socket
from contextlib import ExitStack
from typing import Annotated, Any

import anyio
from pydantic import BeforeValidator

from streambatch.core.errors import OptionError

BACKLOG = 1024
"""Clients that may wait to be accepted."""
_ADDRESS = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):(\d{1,5})")


def _as_text(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError('a string "host:port", such as "127.0.0.1:9464"')
    return value


ListenAddress = Annotated[str, BeforeValidator(_as_text)]
"""An option that `parse_address` reads."""


def parse_address(text: str, option: str = "listen") -> tuple[str, int]:
    """Return host and port of `host:port` or `[IPv6]:port`. Raises OptionError for anything else."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > 65535:
        raise OptionError(option, repr(text), "host:port, such as 127.0.0.1:9000 or [::1]:9000")
    return match[1] or match[2], int(match[3])


def format_address(host: str, port: int) -> str:
    """Return `host:port`, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def bind(listen: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[socket.socket]:
    """Return a non-blocking socket for every address of the host, all on one port; streams listen.

    With port 0 the system chooses one. Raises OSError, or UnicodeError for a name that can't be one.
    """
    host, port = parse_address(listen)
    found = await anyio.getaddrinfo(host, port, type=kind)
    missing = OSError("no such address")
    with ExitStack() as opened:
        bound: list[socket.socket] = []
        # The system names an address twice where its hosts file does.
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                sock = opened.enter_context(_bound(family, kind, (address[0], port, *address[2:])))
            except OSError as error:
                # A name such as localhost often has an IPv6 address where the machine has no IPv6.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
            else:
                bound.append(sock)
                # With port 0, the other addresses take the port that the first was given.
                port = sock.getsockname()[1]
        if not bound:
            raise missing
        # From here on they are the caller's to close.
        opened.pop_all()
    return bound


def address_of(sock: socket.socket) -> str:
    """Return the address that a socket is bound to, as `host:port`."""
    return format_address(*sock.getsockname()[:2])


def cause_of(error: BaseException) -> str:
    """Return why an address can't be had or reached, in the system's words, also where a library says it in its own."""
    # anyio says only that all attempts failed; why each did is in the group beneath.
    beneath = error.__cause__
    while isinstance(beneath, BaseExceptionGroup):
        beneath = beneath.exceptions[0]
    if isinstance(beneath, OSError):
        return cause_of(beneath)
    # Errors of getaddrinfo have numbers below 0 and texts of their own.
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(getattr(error, "strerror", None) or error)


def _bound(family: int, kind: socket.SocketKind, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        if kind == socket.SOCK_STREAM:
            # Lets a restart listen while connections of the last process linger in TIME_WAIT. For datagrams the same
            # option would let two processes share the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
