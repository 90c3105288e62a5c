"""HTTP clients that number their records and send each request until it is answered 200, with its key."""

from __future__ import annotations

import random
import socket
import threading
import time
from types import TracebackType

from tests.faults.records import lines

PAUSE_SECONDS = 0.01
ANSWER_SECONDS = 10.0
LAST_SECONDS = 30.0
"""How long a client that is to stop may take until its last request is answered."""


class Clients:
    """Clients in threads, entered while they send.

    Some requests are hung up on half-way, or before the answer; they are sent again like those that failed. Once they
    were stopped, `counts` tells what was answered, `refusals` which answers were neither 200 nor 503, and `unanswered`
    the streams whose last request never was.
    """

    def __init__(self, port: int, *, seed: int, count: int = 2, per_request: int = 40) -> None:
        self.counts: dict[str, int] = {}
        self.refusals: list[bytes] = []
        self.unanswered: list[str] = []
        self._port, self._per_request = port, per_request
        self._stopping = threading.Event()
        self._give_up = False
        self._threads = [
            threading.Thread(target=self._send_all, args=(name, random.Random(seed * 10 + number)), name=name)
            for number, name in enumerate(f"c{number}" for number in range(count))
        ]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._give_up = kind is not None
        self.stop()

    def stop(self) -> None:
        """Have each client send its last request until it is answered, and wait for that."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(LAST_SECONDS)
        self.unanswered += [thread.name for thread in self._threads if thread.is_alive()]
        self._give_up = self._give_up or bool(self.unanswered)
        for thread in self._threads:
            thread.join()

    def _send_all(self, stream: str, chance: random.Random) -> None:
        sent = 0
        while not self._stopping.is_set():
            count = chance.randint(1, self._per_request)
            self._send(stream, sent, sent + count, chance)
            sent += count
            self.counts[stream] = sent
            time.sleep(chance.uniform(0, 2 * PAUSE_SECONDS))  # so that starts and ends meet it in any state

    def _send(self, stream: str, start: int, end: int, chance: random.Random) -> None:
        body = lines(stream, start, end)
        head = (
            f"POST /records HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
            f"Idempotency-Key: {stream}-{start}\r\n\r\n"
        )
        while not self._give_up:
            try:
                if self._is_taken(head.encode() + body, chance):
                    return
            except OSError:
                time.sleep(PAUSE_SECONDS * 2)  # nobody tells when the next daemon listens

    def _is_taken(self, request: bytes, chance: random.Random) -> bool:
        with socket.create_connection(("127.0.0.1", self._port), timeout=ANSWER_SECONDS) as connection:
            whim = chance.random()
            if whim < 0.05:
                connection.sendall(request[: chance.randrange(len(request))])
                return False
            connection.sendall(request)
            if whim < 0.1:
                return False
            answer = b""
            while block := connection.recv(4096):
                answer += block
        if not answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 503 ")) and answer:
            self.refusals.append(answer)
        return answer.startswith(b"HTTP/1.1 200 ")
