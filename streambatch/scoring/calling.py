"""Calls of steps and models, which are other people's code: what they are given, may raise and must return.

Every error of such code is an Exception afterwards, except for an interrupt from the keyboard.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from streambatch.core.errors import ShapeError, StepError
from streambatch.core.parts import StatefulStep, Step
from streambatch.core.retry import error_text
from streambatch.core.types import BoolArray, FloatArray


def stepped(step: Step, x: FloatArray) -> tuple[FloatArray, BoolArray | None]:
    """Call a step and return its rows and its mask, with as many rows as it was given."""
    # A copy for a step that may write to its input: a call that fails must not change the rows of the next call, and
    # those of a table share its memory.
    result = _called(step, x if step.keeps_input else x.copy())
    y, mask = result if isinstance(result, tuple) else (result, None)
    _check_rows(step, x, y)
    if mask is not None and np.shape(mask) != (len(x),):
        raise ShapeError(f"mask of preprocess step {step.name}", f"({len(x)},)", np.shape(mask))
    return y, mask


def stepped_on(step: StatefulStep, state: Any, x: FloatArray) -> tuple[Any, FloatArray]:
    """Call a step with memory and return its state after the rows, and as many rows as it was given."""
    state, y = _called(step, state, x if step.keeps_input else x.copy())
    _check_rows(step, x, y)
    return state, y


def is_interrupt(error: BaseException) -> bool:
    """Whether a person wants the process to stop; in any other thread than the main one the part raised it itself."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def _called(step: Step | StatefulStep, *args: Any) -> Any:
    try:
        return step(*args)
    except Exception:
        raise
    # SystemExit, above all: it would end a worker thread without a word, and its batch would never come back.
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise StepError(step.name, f"raised {error_text(error)}") from error


def _check_rows(step: Step | StatefulStep, x: FloatArray, y: Any) -> None:
    if np.ndim(y) == 0 or len(y) != len(x):
        raise ShapeError(f"preprocess step {step.name}", f"({len(x)}, ...)", np.shape(y))
