"""The terminal on which programs are pictured: it shows what they draw, and nothing that it doesn't understand."""

from __future__ import annotations

import sys

import pytest

from docs.terminal import on_terminal

SCREEN = """
import sys, time
sys.stdout.write("\\x1b[?1049h\\x1b[H")
while True:
    sys.stdout.write("\\x1b[H" + {lines!r})
    sys.stdout.flush()
    time.sleep(0.01)
"""


def program(lines: str) -> list[str]:
    """Return a command that draws these lines, over and over."""
    return [sys.executable, "-c", SCREEN.format(lines=lines)]


def test_a_screen_becomes_a_page() -> None:
    lines = "\x1b[31mred\x1b[0m <b> \u2584\n\x1b[1mbold\x1b[0m   "
    with on_terminal(program(lines), columns=10, rows=2) as terminal:
        terminal.until(lambda text: "bold" in text, "the second line")
        assert terminal.text == "red <b> \u2584\r\nbold   "
        page = terminal.page()
    assert "&lt;b&gt; \u2584\n" in page
    assert "color: #ff7b72" in page
    assert "font-weight: bold" in page


@pytest.mark.parametrize("lines", ["one", "one\ntwo\nthree", "one\n\x1b[2Atwo", "one\n\ttwo"])
def test_what_is_more_than_lines_of_text_is_no_page(lines: str) -> None:
    with on_terminal(program(lines), columns=10, rows=2) as terminal:
        terminal.until(lambda text: "one" in text, "a line")
        with pytest.raises(ValueError, match="expected 2 lines"):
            terminal.page()


def test_a_program_has_the_terminals_size() -> None:
    asking = "import os, sys; print('\\x1b[H' + str(tuple(os.get_terminal_size())) + '\\x1b[H'); sys.stdin.read()"
    with on_terminal([sys.executable, "-c", asking], columns=33, rows=7) as terminal:
        terminal.until(lambda text: text == "(33, 7)", "its size")
