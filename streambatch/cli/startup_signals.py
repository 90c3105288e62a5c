"""Signals to stop that come before a pipeline runs, while what it takes is imported and loaded."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from streambatch.core.errors import first_cause


class _Stopped(KeyboardInterrupt):
    """As such it passes through code that turns what parts raise into errors."""


@contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Exit with 0 on SIGTERM and SIGINT: nothing was received yet. A pipeline that runs heeds them in its own way."""
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except BaseException as error:
        if isinstance(first_cause(error), _Stopped):
            raise SystemExit(0) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped
