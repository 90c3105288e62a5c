"""What steps with memory hold, as bytes that outlive the process.

Each step writes and reads its own state; here they are put together with the steps' names, so that states are never
given to a step that they are not of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from streambatch.core.durable import learned
from streambatch.core.errors import StepError
from streambatch.core.protocols import StatefulStep

States = tuple[Any, ...]
"""For each step what it remembers; None for one without memory."""

_VERSION = 1


class Memory:
    """What steps with memory hold after the last batch that was prepared."""

    __slots__ = ("states",)

    def __init__(self, states: States) -> None:
        self.states = states


@learned
class _Dumped(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    version: int
    steps: list[tuple[str, bytes]]
    """Name and state of each step with memory, in order."""


def has_memory(step: Any) -> bool:
    """Tell whether a step is one with memory."""
    return bool(getattr(step, "is_stateful", False))


def name_of(part: object) -> str:
    """Return what a step, or a model, is called in messages."""
    return str(getattr(part, "name", type(part).__name__))


def initial_states(steps: Sequence[Any]) -> States:
    """Return the states before the first record."""
    return tuple(step.initial_state() if has_memory(step) else None for step in steps)


def check_storable(steps: Sequence[Any]) -> None:
    """Raise StepError for a step with memory whose state can't be stored."""
    for step in steps:
        if has_memory(step) and not isinstance(step, StatefulStep):
            raise StepError(name_of(step), "it has memory, but no dump(state) and load(data) to store that with")


def dump_states(steps: Sequence[Any], states: States) -> bytes:
    """Return the states of `steps` as bytes."""
    dumped = [(name_of(step), step.dump(state)) for step, state in zip(steps, states, strict=True) if has_memory(step)]
    return msgspec.msgpack.encode(_Dumped(version=_VERSION, steps=dumped))


def load_states(steps: Sequence[Any], data: bytes) -> States:
    """Return the states of `steps` from what was dumped. Raises StepError for what is of other steps."""
    stored = iter(_read(steps, data))
    return tuple(_load(step, *next(stored)) if has_memory(step) else None for step in steps)


def _read(steps: Sequence[Any], data: bytes) -> list[tuple[str, bytes]]:
    names = [name_of(step) for step in steps if has_memory(step)]
    try:
        dumped = msgspec.msgpack.decode(data, type=_Dumped)
    except msgspec.MsgspecError as error:
        raise StepError(_one(names), f"its stored state can't be read: {error}") from error
    if dumped.version != _VERSION:
        raise StepError(_one(names), f"its state was stored in version {dumped.version}; this one reads {_VERSION}")
    found = [name for name, _ in dumped.steps]
    if found != names:
        problem = f"expected the stored state of {_listed(names)}, found that of {_listed(found)}"
        raise StepError(next((name for name in names if name not in found), _one(names or found)), problem)
    return dumped.steps


def _load(step: Any, name: str, data: bytes) -> Any:
    try:
        return step.load(data)
    except StepError:
        raise
    except Exception as error:  # whatever a step of somebody else raises
        raise StepError(name, f"its stored state doesn't fit: {type(error).__name__}: {error}") from error


def _one(names: Sequence[str]) -> str:
    return names[0] if names else "with memory"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "no step"
