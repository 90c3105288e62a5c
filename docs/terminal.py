"""A terminal of a given size, a program that runs on it, and what it shows as a page of HTML.

For programs that draw as rich does: whole screens, each from the upper left corner, of text and colours. A screen that
holds anything else is an error, so that no picture is of what a terminal would not show.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock, Thread

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

PATIENCE_SECONDS = 120.0
_HOME = b"\x1b[H"
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
_NOT_PASSED_ON = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
"""What would overrule the terminal's own size and colours."""
_COLOURED = (
    (90, 98, 112),
    (255, 123, 114),
    (86, 211, 100),
    (227, 179, 65),
    (121, 192, 255),
    (210, 168, 255),
    (86, 212, 221),
)
_THEME = TerminalTheme((17, 20, 26), (232, 235, 240), [*_COLOURED, (232, 235, 240)], [*_COLOURED, (255, 255, 255)])
_PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: {background}; }}
pre {{ margin: 0; padding: 12px 14px; width: max-content; color: {foreground};
       font: 14px/16px "DejaVu Sans Mono", monospace; font-variant-ligatures: none; }}
</style><pre>{code}</pre>"""


class Terminal:
    """A terminal on which a program runs. Use `on_terminal`."""

    def __init__(self, master: int, columns: int, rows: int) -> None:
        self._master, self.columns, self.rows = master, columns, rows
        self._lock, self._screen, self._coming = Lock(), "", b""

    def read(self) -> None:
        """Take in what the program writes, until it has closed the terminal."""
        while True:
            try:
                came = os.read(self._master, 1 << 16)
            except OSError:  # what Linux says where the other side is closed
                return
            if not came:
                return
            *_, last, self._coming = b"", *(self._coming + came).split(_HOME)
            with self._lock:
                self._screen = last.decode() or self._screen

    @property
    def text(self) -> str:
        """The last screen that was drawn to its end, without its colours."""
        with self._lock:
            return _COLOURS.sub("", self._screen)

    def until(self, is_true: Callable[[str], bool], what: str) -> None:
        """Wait until the screen shows something."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_true(self.text):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {PATIENCE_SECONDS} s: {what}; the screen was:\n{self.text}")
            time.sleep(0.1)  # a thread fills the screen, and tells nobody

    def page(self) -> str:
        """Return the last screen as HTML. Raises ValueError where it holds more than lines of text and colours."""
        with self._lock:
            screen = self._screen
        lines = _COLOURS.sub("", screen).split("\r\n")
        if len(lines) != self.rows or not all(line.isprintable() for line in lines):
            raise ValueError(f"expected {self.rows} lines of text and colours, found {screen!r}")
        console = Console(record=True, width=self.columns, file=io.StringIO(), force_terminal=True)
        console.print(Text.from_ansi(screen.replace("\r\n", "\n")), end="", soft_wrap=True)
        return console.export_html(theme=_THEME, code_format=_PAGE, inline_styles=True)


@contextmanager
def on_terminal(command: Sequence[str], columns: int, rows: int) -> Iterator[Terminal]:
    """Run a program on a terminal until the context ends; whatever happens, it is gone afterwards."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
    environ["TERM"] = "xterm-256color"
    process = subprocess.Popen(command, env=environ, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    terminal = Terminal(master, columns, rows)
    reading = Thread(target=terminal.read)
    reading.start()
    try:
        yield terminal
    finally:
        process.terminate()
        process.wait()
        reading.join()
        os.close(master)
