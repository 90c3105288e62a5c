"""A server of scores that answers as many requests as it is told to."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.e2e.running import PATIENCE_SECONDS


class Server:
    """Reads requests, and answers as many of them as it is told to; it never answers the others."""

    def __init__(self) -> None:
        self.read: list[tuple[str, bytes]] = []
        """Id and body of each request."""
        self._may_answer = self._waiting = self._calls = 0
        self._changed = threading.Condition()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not server.take(self.headers["Streambatch-Batch-Id"], body):
                    self.close_connection = True
                    return
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that was killed
        self.port = self._http.server_address[1]

    def __enter__(self) -> Server:
        threading.Thread(target=self._http.serve_forever, args=(0.01,)).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        self._http.shutdown()
        self._http.server_close()

    def take(self, id: str, body: bytes) -> bool:
        """Keep a request and wait until it may be answered; False if it never may."""
        with self._changed:
            self.read.append((id, body))
            calls = self._calls
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._may_answer > 0 or self._calls > calls)
            self._waiting -= 1
            self._changed.notify_all()
            if self._calls > calls:
                return False
            self._may_answer -= 1
            return True

    def answer(self, requests: int) -> None:
        with self._changed:
            self._may_answer += requests
            self._changed.notify_all()

    def until_stuck(self) -> None:
        """Wait until there is a request that may not be answered."""
        with self._changed:
            is_stuck = self._changed.wait_for(lambda: self._waiting > self._may_answer == 0, PATIENCE_SECONDS)
        assert is_stuck, f"no request came after the {len(self.read)} that were answered"

    def hang_up(self) -> None:
        """Forget the requests that wait: whoever sent them is gone."""
        with self._changed:
            self._calls += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting)
