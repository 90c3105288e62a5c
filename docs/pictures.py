"""Takes the pictures of the live page and of `streambatch top`: `make pictures`, or `python -m docs.pictures top`.

Real daemons, a real feed, a real browser and a real terminal. The page: of a pipeline that gets on, by day; the same on
a phone; by night of a pipeline whose sink is away. `top`: one daemon that its model limits; the same beside another.
"""

from __future__ import annotations

import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Event, Thread
from typing import Any

import numpy as np

from docs.terminal import Terminal, on_terminal
from streambatch.cli.samples import rides, write_model
from streambatch.cli.top_view import BARS
from tests.e2e.browser import Browser, Scheme, browsing
from tests.e2e.running import Daemon, running

PICTURES = Path(__file__).with_name("pictures")
RATE, WAVE_SECONDS, TICK_SECONDS = 12_000, 30.0, 0.05
"""The feed: records per second on average, how long a wave of it lasts, and how often it sends."""
BROKEN_EVERY = 2_000
HISTORY_SECONDS = 100.0
"""How long a pipeline has run when its page is pictured: the lines on it are of two minutes."""
OUTAGE_SECONDS = 12.0
"""How long a sink has been away when the page is pictured: rates are of 5 s, and their lines are to show the end."""
PATIENCE_SECONDS = 60.0
COLUMNS = 110
BARS_ALONE, BARS_OF_SEVERAL = 50, 20
"""How long a history `top` shows when it is pictured, a bar a second: as long as there is room for, or almost."""
BYTES_MAX = 200_000
CONFIG = """
    name = "{name}"
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
    {model}
    [sink.scores]
    {sink}
    [delivery]
    checkpoint_interval = "200ms"
    [http]
    listen = "127.0.0.1:0"
    """
LINEAR = 'type = "linear"\npath = "model.npz"'
FILE = 'type = "file"\npath = "scores.jsonl"\nif_exists = "append"'
WAITING = 'type = "python"\npath = "waiting:score"'
WAITING_MODEL = """
import time

def score(x):
    time.sleep(0.08)  # as one that asks a service
    return x @ [3.0, 0.5, 1.0]
"""


def main(kinds: list[str]) -> int:
    """Take the pictures, by default all. Returns 1 when one is larger than the repository should hold."""
    PICTURES.mkdir(exist_ok=True)
    with browsing() as browser:
        for kind, take in {"page": _take_page, "top": _take_top}.items():
            if kind in kinds or not kinds:
                take(browser)
    large = [picture.name for picture in PICTURES.glob("*.png") if picture.stat().st_size > BYTES_MAX]
    if large:
        print(f"larger than {BYTES_MAX} bytes: {', '.join(large)}", file=sys.stderr)
    return 1 if large else 0


def _take_page(browser: Browser) -> None:
    with _pipeline("rides", LINEAR, FILE) as daemon:
        browser.open(_url(daemon))
        _until(daemon, lambda status: _is_as_old(status, HISTORY_SECONDS), HISTORY_SECONDS)
        _take(browser, "page-light.png", 1280, 900)
        _take(browser, "page-phone.png", 390, 1560)
    with _reading() as reader, _pipeline("rides", LINEAR, reader.sink) as daemon:
        browser.open(_url(daemon))
        _until(daemon, lambda status: _is_as_old(status, HISTORY_SECONDS), HISTORY_SECONDS)
        reader.leave()
        _until(daemon, lambda status: status["recent_errors"] and _is_as_old(status, HISTORY_SECONDS + OUTAGE_SECONDS))
        _take(browser, "page-dark.png", 1280, 900, "dark")


def _take_top(browser: Browser) -> None:
    top = [sys.executable, "-m", "streambatch", "top"]
    with ExitStack() as stack:
        limited = _url(stack.enter_context(_pipeline("fares", WAITING, FILE)))
        other = _url(stack.enter_context(_pipeline("rides", LINEAR, FILE)))
        alone = stack.enter_context(on_terminal([*top, limited], COLUMNS, 24))
        several = stack.enter_context(on_terminal([*top, other, limited], COLUMNS, 7))
        alone.until(lambda text: "turn" in text and _bars(text) >= BARS_ALONE, "a verdict and a history")
        several.until(lambda text: "turn" in text and _bars(text) >= BARS_OF_SEVERAL, "a verdict and a history")
        _take_screen(browser, "top.png", alone)
        _take_screen(browser, "top-several.png", several)


def _bars(text: str) -> int:
    """Return how long the longest history on a screen is."""
    return max(map(len, re.findall(f"[{BARS}]+", text)), default=0)


def _is_as_old(status: dict[str, Any], seconds: float) -> bool:
    return bool(status["uptime_seconds"] >= seconds)


def _until(daemon: Daemon, is_true: Callable[[dict[str, Any]], bool], seconds: float = 0.0) -> None:
    """Wait until a daemon's status is so, which takes so many seconds or not many more."""
    deadline = time.monotonic() + seconds + PATIENCE_SECONDS
    while not is_true(status := daemon.status()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the status was, until the end: {status}")
        time.sleep(0.5)  # a daemon can only be asked again


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
def _pipeline(name: str, model: str, sink: str) -> Iterator[Daemon]:
    """Run a pipeline on a feed as long as the context lasts, for the second time: past runs are shown."""
    config = CONFIG.format(name=name, model=model, sink=sink)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model.npz")
        (Path(folder) / "waiting.py").write_text(WAITING_MODEL)
        with running(Path(folder), config) as daemon:
            with _fed(daemon):
                _until(daemon, lambda status: status["records"]["scored"] > RATE)
            daemon.stop()
        with running(Path(folder), config) as daemon, _fed(daemon):
            yield daemon


def _url(daemon: Daemon) -> str:
    return str(daemon.event("admin_listening")["url"])


@contextmanager
def _fed(daemon: Daemon) -> Iterator[None]:
    """Send rides over TCP, in waves, as long as the context lasts; a pipeline that takes no more is waited for."""
    stopping = Event()
    with socket.create_connection(daemon.address("rides_in")) as client:
        feeding = Thread(target=_feed, args=(client, stopping))
        feeding.start()
        try:
            yield
        finally:
            stopping.set()
            with suppress(OSError):  # closed by the pipeline already
                client.shutdown(socket.SHUT_RDWR)
            feeding.join()


def _feed(client: socket.socket, stopping: Event) -> None:
    rng, sent = np.random.default_rng(7), 0
    with suppress(OSError):  # closed at one of its ends, which ends the feed
        while not stopping.wait(TICK_SECONDS):
            count = int(
                RATE
                * TICK_SECONDS
                * (1 + 0.4 * np.sin(time.monotonic() / WAVE_SECONDS * 2 * np.pi) + 0.1 * rng.standard_normal())
            )
            client.sendall(rides(rng, sent + 1, count, broken_every=BROKEN_EVERY))
            sent += count


def _take(browser: Browser, name: str, width: int, height: int, scheme: Scheme = "light") -> None:
    """Write a picture of the page's top, once what moves on it has come to rest."""
    browser.screen(width, height, scheme)
    at_rest = "return new Promise(done => requestAnimationFrame(() => done(!document.getAnimations().length)))"
    browser.until(lambda: browser.run(at_rest), "the page is at rest")
    (PICTURES / name).write_bytes(browser.picture())


def _take_screen(browser: Browser, name: str, terminal: Terminal) -> None:
    """Write a picture of what a terminal shows."""
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as page:
        page.write(terminal.page())
        page.flush()
        browser.open(f"file://{page.name}")
        width, height = browser.run(
            "const box = document.querySelector('pre'); return [box.offsetWidth, box.offsetHeight]"
        )
        browser.screen(width, height, scale=1.5)
        (PICTURES / name).write_bytes(browser.picture())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
