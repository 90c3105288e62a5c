"""The event loop's own time as a clock: virtual where the loop's is."""

import anyio


class LoopClock:
    """Both readings are what the running loop says."""

    def monotonic(self) -> float:
        return anyio.current_time()

    def wall(self) -> float:
        return anyio.current_time()
