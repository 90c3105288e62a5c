"""Calls of steps and models, which are other people's code: what they are given, may raise and must return.

Whatever such code raises is an Exception afterwards, but for an interrupt from the keyboard: SystemExit would end a
worker thread without a word, and its batch would never come back.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from streambatch.core.errors import ShapeError, StepError
from streambatch.core.retry import error_text
from streambatch.core.types import BoolArray, FloatArray
from streambatch.scoring.states import name_of


def stepped(step: Any, x: FloatArray) -> tuple[FloatArray, BoolArray | None]:
    """Call a step and return its rows and its mask, with as many rows as it was given."""
    result = _called(step, own(step, x))
    y, mask = result if isinstance(result, tuple) else (result, None)
    _check_rows(step, x, y)
    if mask is not None and np.shape(mask) != (len(x),):
        raise ShapeError(f"mask of preprocess step {name_of(step)}", f"({len(x)},)", np.shape(mask))
    return y, mask


def stepped_on(step: Any, state: Any, x: FloatArray) -> tuple[Any, FloatArray]:
    """Call a step with memory and return its state after the rows, and as many rows as it was given."""
    state, y = _called(step, state, own(step, x))
    _check_rows(step, x, y)
    return state, y


def own(part: Any, x: FloatArray) -> FloatArray:
    """Return features that a part may write to: what a call that fails has made of them is not what the next one is to
    get, and those of a table are shared with it. Parts that are bound to a shape are this package's own, which don't.
    """
    return x if hasattr(part, "bind") else x.copy()


def is_interrupt(error: BaseException) -> bool:
    """Tell whether somebody wants the process to stop; in any other thread than the main one it is the part's own."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def _called(step: Any, *args: Any) -> Any:
    try:
        return step(*args)
    except Exception:
        raise
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise StepError(name_of(step), f"raised {error_text(error)}") from error


def _check_rows(step: Any, x: FloatArray, y: Any) -> None:
    if np.ndim(y) == 0 or len(y) != len(x):
        raise ShapeError(f"preprocess step {name_of(step)}", f"({len(x)}, ...)", np.shape(y))
