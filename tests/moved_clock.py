"""A clock that stands still until a test moves it."""


class MovedClock:
    """`now` is what both readings give."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now
