"""What the daemon is made of, as far as it needs no process: observers side by side, and who holds a state folder."""

from pathlib import Path

import pytest

from streambatch.daemon import LOCK, Observers, hold_state
from streambatch.errors import ConfigError, HeldError
from streambatch.events import Observer


class Hears(Observer):
    """Keeps what it is told of."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def connection_opened(self, source: str) -> None:
        self.heard.append(f"opened {source}")


class HearsMore(Hears):
    """Also hears of what the other doesn't."""

    def synced(self, seconds: float, *, ok: bool) -> None:
        self.heard.append(f"synced {seconds} {ok}")


def test_observers_hear_the_same_in_order() -> None:
    first, second = Hears(), HearsMore()
    both = Observers(first, second)
    both.connection_opened("in")
    both.synced(0.5, ok=True)
    both.connection_closed("in")
    assert first.heard == ["opened in"]
    assert second.heard == ["opened in", "synced 0.5 True"]


def test_a_state_folder_is_held_once(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    with hold_state(folder):
        with pytest.raises(HeldError, match=r"a/b is held by process \d+; stop that, or choose"), hold_state(folder):
            pass
    with hold_state(folder):
        pass


def test_a_lock_that_nobody_holds_any_more(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("123456789\n")
    with hold_state(tmp_path):
        assert int((tmp_path / LOCK).read_text()) != 123456789


def test_what_is_raised_inside_comes_out(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), hold_state(tmp_path):
        raise BlockingIOError


def test_a_state_folder_that_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"state_dir: found .*file"), hold_state(tmp_path / "file"):
        pass
