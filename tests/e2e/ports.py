"""Ports that a test has to name before anything listens on them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def held_ports(count: int) -> Iterator[list[int]]:
    """Hold ports of loopback, so that the system gives them to nobody else meanwhile.

    A server may listen on one, again and again, as all do that set SO_REUSEADDR; while none does, clients are refused.
    """
    with ExitStack() as holding:
        holders = [holding.enter_context(socket.socket()) for _ in range(count)]
        for holder in holders:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
        yield [holder.getsockname()[1] for holder in holders]


@contextmanager
def held_port() -> Iterator[int]:
    """Hold one."""
    with held_ports(1) as (port,):
        yield port
