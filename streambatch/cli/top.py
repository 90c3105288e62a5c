"""`streambatch top`: show what daemons are doing, on a terminal once a second, or once as text or JSON.

The terminal is restored however the command ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live as Screen

from streambatch.cli.top_client import Watcher
from streambatch.cli.top_view import draw

DEFAULT_URL = "http://127.0.0.1:9464"
REFRESH_SECONDS = 1.0
DONE, UNREACHED = 0, 1


def watch_daemons(urls: Sequence[str], *, token: str | None, once: bool, as_json: bool) -> int:
    """Show daemons until q or a signal; or once, and return UNREACHED if one of them can't be reached.

    Raises ConfigError for a wrong address.
    """
    watchers = [Watcher(url, token) for url in urls or [DEFAULT_URL]]
    console = Console()
    if once or as_json or not console.is_terminal:
        return _print_once(watchers, console, as_json=as_json)
    for watcher in watchers:
        watcher.start(REFRESH_SECONDS)
    with contextlib.suppress(KeyboardInterrupt), _terminated_gently():
        _show(watchers, console)
    return DONE


def _print_once(watchers: Sequence[Watcher], console: Console, *, as_json: bool) -> int:
    """Fetch two statuses, a second apart, since rates are differences; print the views."""
    _look(watchers)
    if any(watcher.view()["is_up"] for watcher in watchers):
        time.sleep(REFRESH_SECONDS)  # the rates of this second are shown
        _look(watchers)
    views = [watcher.view() for watcher in watchers]
    if as_json:
        for view in views:
            print(json.dumps(view))
    else:
        console.print(draw(views, console.width, None))
    return DONE if all(view["is_up"] for view in views) else UNREACHED


def _look(watchers: Sequence[Watcher]) -> None:
    # Side by side: each may take as long as its time-out.
    threads = [threading.Thread(target=watcher.look) for watcher in watchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _show(watchers: Sequence[Watcher], console: Console) -> None:
    with _keys() as pressed, Screen(console=console, screen=True, auto_refresh=False) as screen:
        while True:
            screen.update(draw([each.view() for each in watchers], console.width, console.height), refresh=True)
            if pressed(REFRESH_SECONDS) in ("q", "Q", "\x03", "\x04"):
                return


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """Yield a function that waits for a key for some seconds and returns it, or an empty text."""
    if not sys.stdin.isatty():
        yield time.sleep  # without a keyboard, only wait
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    # Keys come without Enter, and Ctrl-C still raises KeyboardInterrupt.
    tty.setcbreak(terminal)

    def pressed(seconds: float) -> str:
        return os.read(terminal, 1).decode(errors="replace") if select.select([terminal], [], [], seconds)[0] else ""

    try:
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _terminated_gently() -> Iterator[None]:
    """Make SIGTERM end the command as Ctrl-C does, so that the terminal is restored."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
