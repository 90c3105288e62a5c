"""The states of steps with memory, and their form as bytes that outlive the process.

Each step dumps and loads its own state. The dumps are stored with the steps' names, so that a step never gets the state
of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from streambatch.core.checkpoints import resolved_early
from streambatch.core.errors import StepError
from streambatch.core.parts import StatefulStep, Step

Steps = Sequence[Step | StatefulStep]
States = tuple[Any, ...]
"""The state of each step; None for a step without memory."""

_VERSION = 1


class StepMemory:
    """The states after the last batch that was prepared. Transforms of the same steps share it, over a reload."""

    __slots__ = ("states",)

    def __init__(self, states: States) -> None:
        self.states = states


@resolved_early
class _Dumped(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    version: int
    steps: list[tuple[str, bytes]]
    """Name and state of each step with memory, in order."""


def initial_states(steps: Steps) -> States:
    """Return the states before the first record."""
    return tuple(step.initial_state() if step.is_stateful else None for step in steps)


def check_storable(steps: Steps) -> None:
    """Raise StepError for a step with memory whose state can't be stored."""
    for step in steps:
        if step.is_stateful and not step.is_storable:
            raise StepError(step.name, "it has memory, but no dump(state) and load(data) to store that with")


def dump_states(steps: Steps, states: States) -> bytes:
    """Return the states of `steps` as bytes."""
    dumped = [(step.name, step.dump(state)) for step, state in zip(steps, states, strict=True) if step.is_stateful]
    return msgspec.msgpack.encode(_Dumped(version=_VERSION, steps=dumped))


def load_states(steps: Steps, data: bytes) -> States:
    """Return the states of `steps` from their dump. Raises StepError for the dump of other steps."""
    stored = iter(_read(steps, data))
    return tuple(_load(step, *next(stored)) if step.is_stateful else None for step in steps)


def _read(steps: Steps, data: bytes) -> list[tuple[str, bytes]]:
    names = [step.name for step in steps if step.is_stateful]
    try:
        dumped = msgspec.msgpack.decode(data, type=_Dumped)
    except msgspec.MsgspecError as error:
        raise StepError(_one(names), f"its stored state can't be read: {error}") from error
    if dumped.version != _VERSION:
        raise StepError(_one(names), f"its state was stored in version {dumped.version}; this one reads {_VERSION}")
    # In order too, since each step takes the state at its own place.
    found = [name for name, _ in dumped.steps]
    if found != names:
        problem = f"expected the stored state of {_listed(names)}, found that of {_listed(found)}"
        raise StepError(next((name for name in names if name not in found), _one(names or found)), problem)
    return dumped.steps


def _load(step: StatefulStep, name: str, data: bytes) -> Any:
    try:
        return step.load(data)
    except StepError:
        raise
    except Exception as error:  # a step of another package may raise anything
        raise StepError(name, f"its stored state doesn't fit: {type(error).__name__}: {error}") from error


def _one(names: Sequence[str]) -> str:
    return names[0] if names else "with memory"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "no step"
