"""Takes the pictures of the live page: real daemons, a real feed, a real browser. `make pictures`.

One of a pipeline that gets on, by day; the same on a phone; one by night of a pipeline whose sink is away.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Event, Thread

import numpy as np

from streambatch.cli.samples import rides, write_model
from tests.e2e.browser import Browser, Scheme, browsing
from tests.e2e.running import Daemon, running

PICTURES = Path(__file__).with_name("pictures")
RATE, TICK_SECONDS = 12_000, 0.05
BROKEN_EVERY = 2_000
HISTORY_SECONDS = 100.0
"""How long a pipeline runs before its picture is taken: the lines on the page are of two minutes."""
OUTAGE_SECONDS = 12.0
BYTES_MAX = 200_000
CONFIG = """
    name = "rides"
    [source.rides_in]
    type = "tcp"
    listen = "127.0.0.1:0"
    [record]
    id = "ride"
    features = ["km", "minutes", "riders"]
    [batch]
    max_records = 512
    max_wait = "20ms"
    [[preprocess]]
    type = "standardize"
    mean = [5.0, 14.0, 1.5]
    scale = [3.0, 8.0, 0.8]
    [model]
    type = "linear"
    path = "model.npz"
    [sink.scores]
    {sink}
    [delivery]
    checkpoint_interval = "200ms"
    [http]
    listen = "127.0.0.1:0"
    """
FILE = 'type = "file"\npath = "scores.jsonl"\nif_exists = "append"'


def main() -> int:
    """Take all pictures. Returns 1 when one is larger than the repository should hold."""
    PICTURES.mkdir(exist_ok=True)
    with browsing() as browser:
        with _folder() as folder, _page(folder, FILE, browser):
            time.sleep(HISTORY_SECONDS)
            _take(browser, "page-light.png", 1280, 900)
            _take(browser, "page-phone.png", 390, 1560)
        with _folder() as folder, _reading() as reader, _page(folder, reader.sink, browser):
            time.sleep(HISTORY_SECONDS - OUTAGE_SECONDS)
            reader.leave()
            time.sleep(OUTAGE_SECONDS)
            _take(browser, "page-dark.png", 1280, 900, "dark")
    large = [picture.name for picture in PICTURES.glob("*.png") if picture.stat().st_size > BYTES_MAX]
    if large:
        print(f"larger than {BYTES_MAX} bytes: {', '.join(large)}", file=sys.stderr)
    return 1 if large else 0


class Reader(ThreadingTCPServer):
    """What takes in scores over TCP, until it leaves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Reading)
        self.clients: list[socket.socket] = []

    @property
    def sink(self) -> str:
        """What a config says to have scores sent here."""
        return f'type = "tcp"\naddress = "127.0.0.1:{self.server_address[1]}"'

    def leave(self) -> None:
        """Close the port and every connection."""
        self.shutdown()
        self.server_close()
        for client in self.clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


class Reading(BaseRequestHandler):
    """One connection that scores come by."""

    server: Reader

    def handle(self) -> None:
        self.server.clients.append(self.request)
        with suppress(OSError):
            while self.request.recv(1 << 20):
                continue


@contextmanager
def _reading() -> Iterator[Reader]:
    """Take in scores for as long as the context lasts, or until the reader leaves."""
    reader = Reader()
    serving = Thread(target=reader.serve_forever, args=(0.05,))
    serving.start()
    try:
        yield reader
    finally:
        reader.leave()
        serving.join()


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model.npz")
        yield Path(folder)


@contextmanager
def _page(folder: Path, sink: str, browser: Browser) -> Iterator[None]:
    """Run a pipeline for the second time, for the history's sake, on a feed, and open its page."""
    config = CONFIG.format(sink=sink)
    with running(folder, config) as daemon:
        with _fed(daemon):
            time.sleep(5)
        daemon.stop()
    with running(folder, config) as daemon, _fed(daemon):
        browser.open(daemon.event("admin_listening")["url"])
        yield


@contextmanager
def _fed(daemon: Daemon) -> Iterator[None]:
    """Send rides over TCP, in waves, as long as the context lasts."""
    stopping = Event()
    feeding = Thread(target=_feed, args=(daemon.address("rides_in"), stopping))
    feeding.start()
    try:
        yield
    finally:
        stopping.set()
        feeding.join()


def _feed(address: tuple[str, int], stopping: Event) -> None:
    rng, sent = np.random.default_rng(7), 0
    with socket.create_connection(address) as client:
        client.settimeout(TICK_SECONDS)
        while not stopping.wait(TICK_SECONDS):
            count = int(RATE * TICK_SECONDS * (1 + 0.4 * np.sin(time.monotonic() / 8) + 0.1 * rng.standard_normal()))
            try:
                client.sendall(rides(rng, sent + 1, count, broken_every=BROKEN_EVERY))
            except TimeoutError:
                return  # a pipeline that holds takes in no more
            sent += count


def _take(browser: Browser, name: str, width: int, height: int, scheme: Scheme = "light") -> None:
    """Write a picture of the page's top."""
    browser.screen(width, height, scheme)
    time.sleep(1)  # what moves has come to rest
    (PICTURES / name).write_bytes(browser.picture())


if __name__ == "__main__":
    raise SystemExit(main())
