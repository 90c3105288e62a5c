"""A server that scores are posted to, and that misbehaves in turn: it answers 500, resets, stalls, or dies unheard."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType

STALL_SECONDS = 0.8
SHARE = 0.4
"""Of all requests so many fail, on average."""
FAULTS = ("500", "reset", "stall", "taken and dead", "half an answer", "closed at once")


class BadServer:
    """Takes posts, each connection in a thread, entered while it runs. taken: the bodies it has kept, in order.

    It fails at random, but in every way once before it fails in one again. met: the ways it has.
    """

    def __init__(self, *, seed: int) -> None:
        self.taken: list[tuple[str, bytes]] = []
        self.met: set[str] = set()
        self._chance = random.Random(seed)
        self._next: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/scores"
        self._turn = threading.Lock()
        self._threads = [threading.Thread(target=self._serve)]

    def __enter__(self) -> BadServer:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._talk, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(30)
            try:
                while (request := _request(connection)) is not None:
                    if not self._answer(connection, *request):
                        return
            except OSError:
                return

    def _answer(self, connection: socket.socket, name: str, body: bytes) -> bool:
        """Answer in some way. Returns whether the connection goes on."""
        with self._turn:
            fault = self._fault() if self._chance.random() < SHARE else ""
            self.met.add(fault)
            if fault in ("", "taken and dead", "half an answer"):
                self.taken.append((name, body))
        return _BEHAVIOURS[fault](connection)

    def _fault(self) -> str:
        if not self._next:
            self._next = self._chance.sample(FAULTS, len(FAULTS))
        return self._next.pop()


def _request(connection: socket.socket) -> tuple[str, bytes] | None:
    data = b""
    while b"\r\n\r\n" not in data:
        block = connection.recv(65536)
        if not block:
            return None
        data += block
    head, _, body = data.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return headers["streambatch-batch-id"], body


def _send(answer: bytes) -> Callable[[socket.socket], bool]:
    def send(connection: socket.socket) -> bool:
        connection.sendall(answer)
        return answer.endswith(b"\r\n\r\n")

    return send


def _reset(connection: socket.socket) -> bool:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def _stall(connection: socket.socket) -> bool:
    connection.settimeout(STALL_SECONDS)
    connection.recv(1)  # until the other side has had enough, or so long
    return False


_BEHAVIOURS: dict[str, Callable[[socket.socket], bool]] = {
    "": _send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "500": _send(b"HTTP/1.1 500 Oh No\r\nContent-Length: 0\r\n\r\n"),
    "half an answer": _send(b"HTTP/1.1 20"),
    "reset": _reset,
    "taken and dead": _reset,
    "stall": _stall,
    "closed at once": lambda connection: False,
}
