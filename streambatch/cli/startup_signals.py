"""Handle SIGTERM and SIGINT before a pipeline runs, while its modules are imported and its model is loaded."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from streambatch.core.errors import first_cause


class _Stopped(KeyboardInterrupt):
    """Raised by the signal. A KeyboardInterrupt passes through code that turns the exceptions of parts into errors."""


@contextmanager
def exiting_on_signals() -> Iterator[None]:
    """Exit with 0 on SIGTERM and SIGINT: nothing was received yet. A running pipeline installs handlers of its own."""
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except BaseException as error:
        # It may come inside a group, as task groups raise the errors of their tasks.
        if isinstance(first_cause(error), _Stopped):
            raise SystemExit(0) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped
