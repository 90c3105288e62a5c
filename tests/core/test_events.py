"""Observers side by side."""

from streambatch.core.events import Observer, Observers


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
