"""Steps and models of other people that are no subclass of ours, wrapped once where they come in.

What such an object can do is found out here, by the names it has, and nowhere else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

from streambatch.core.errors import ModelError, StepError
from streambatch.core.npz import Fail
from streambatch.core.parts import Model, ModelOptions, Site, StatefulStep, Step, StepOptions
from streambatch.core.types import BoolArray, FloatArray


def as_step(step: Any) -> StepOptions:
    """Return a step or its options; anything else that makes or does what a step does is wrapped.

    step: a `Step`, a `StatefulStep` or options of one; an object with `build`, which is taken for options; a function
    of x, an object that can be called with x, or one with `is_stateful` that can be called with state and x; a class of
    such objects. Raises StepError.
    """
    if isinstance(step, StepOptions):
        return step
    if _is_options(step) and not callable(step):
        return WrappedStepOptions(step)
    fail = partial(StepError, _part_name(step))
    function = built(step, fail)
    if getattr(function, "is_stateful", False):
        return WrappedStatefulStep(function)
    if not callable(function):
        raise fail(f"expected a function of x, found {function!r}")
    if is_async(function):
        raise fail("expected a function, found an async one")
    return WrappedStep(function)


def as_model(model: Any) -> ModelOptions:
    """Return a model or its options; anything else that makes a model or scores is wrapped.

    model: a `Model` or options of one; an object with `build`, which is taken for options; a function of x, an object
    with `score(x)`, or a class of such objects, sync or async. Raises ModelError.
    """
    if isinstance(model, ModelOptions):
        return model
    if _is_options(model) and not callable(model) and not hasattr(model, "score"):
        return WrappedModelOptions(model)
    return WrappedModel(model)


class WrappedStepOptions(StepOptions):
    """Options of a step that are no subclass of `StepOptions`."""

    def __init__(self, options: Any) -> None:
        self.wrapped = options

    def build(self, site: Site) -> Step | StatefulStep:
        return as_step(self.wrapped.build(site)).build(site)


class WrappedStep(Step):
    """A function of x, or an object that can be called with x. Two of one function are equal."""

    def __init__(self, function: Any) -> None:
        self.wrapped, self.name = function, _part_name(function)
        # What is bound to a shape keeps it, and leaves the array alone: so do this package's own steps.
        self._bind = getattr(function, "bind", None)
        self.keeps_input = self.keeps_shape = self._bind is not None

    def bind(self, shape: tuple[int, ...], dtype: Any) -> Step:
        return self if self._bind is None else WrappedStep(self._bind(shape, dtype))

    def __call__(self, x: FloatArray, /) -> FloatArray | tuple[FloatArray, BoolArray]:
        return self.wrapped(x)  # type: ignore[no-any-return]  # whatever it returns is checked where it is called

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WrappedStep) and other.wrapped is self.wrapped

    def __hash__(self) -> int:
        return id(self.wrapped)


class WrappedStatefulStep(StatefulStep):
    """An object that can be called with state and x. Two of one object are equal."""

    def __init__(self, step: Any) -> None:
        self.wrapped, self.name = step, _part_name(step)
        self.is_storable = hasattr(step, "dump") and hasattr(step, "load")
        self._bind = getattr(step, "bind", None)
        self.keeps_input = self.keeps_shape = self._bind is not None

    def bind(self, shape: tuple[int, ...], dtype: Any) -> StatefulStep:
        return self if self._bind is None else WrappedStatefulStep(self._bind(shape, dtype))

    def initial_state(self) -> Any:
        return self.wrapped.initial_state()

    def __call__(self, state: Any, x: FloatArray, /) -> tuple[Any, FloatArray]:
        return self.wrapped(state, x)  # type: ignore[no-any-return]  # whatever it returns is checked where it is called

    def dump(self, state: Any, /) -> bytes:
        return self.wrapped.dump(state)  # type: ignore[no-any-return]  # the suite for steps checks that it is bytes

    def load(self, data: bytes, /) -> Any:
        return self.wrapped.load(data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WrappedStatefulStep) and other.wrapped is self.wrapped

    def __hash__(self) -> int:
        return id(self.wrapped)


class WrappedModelOptions(ModelOptions):
    """Options of a model that are no subclass of `ModelOptions`."""

    def __init__(self, options: Any) -> None:
        self.wrapped = options

    @property
    def location(self) -> str | None:
        return getattr(self.wrapped, "path", None)

    def build(self, site: Site) -> Model:
        return as_model(self.wrapped.build(site)).build(site)


class WrappedModel(Model):
    """A function of x, an object with `score(x)`, or a class of such objects, which is built."""

    def __init__(self, target: Any) -> None:
        fail = partial(ModelError, _part_name(target))
        self.wrapped = model = built(target, fail)
        self.name = _part_name(model)
        self._score = score_of(model, fail)
        self.is_async = bool(getattr(model, "is_async", False)) or is_async(self._score)
        self._bind = getattr(model, "bind", None)
        self.keeps_input = self._bind is not None
        self.format = getattr(model, "format", None)
        self.parameters = getattr(model, "parameters", None)
        # Other people's objects may have a method of that name.
        digest = getattr(model, "digest", None)
        self.digest = digest if isinstance(digest, str) else None

    def bind(self, shape: tuple[int, ...]) -> None:
        if self._bind is not None:
            self._bind(shape)

    def score(self, x: FloatArray, /) -> Any:
        return self._score(x)


def built(target: object, fail: Fail) -> object:
    """Return an object to use: of a class what its classmethod `load` returns, where it has one, or an instance made
    without arguments; anything else as it is. Raises what `fail` makes of the problem.
    """
    if not isinstance(target, type):
        return target
    # Looked up without binding: a plain method `load` is no way to make an instance, but what loads a step's state.
    load = inspect.getattr_static(target, "load", None)
    make: Callable[[], object] = target
    if isinstance(load, classmethod | staticmethod):
        make = attrgetter("load")(target)
    try:
        return make()
    except Exception as error:
        raise fail(f"can't be built: {type(error).__name__}: {error}") from error


def check_takes_one(function: Callable[..., object], fail: Fail) -> None:
    """Refuse a callable that can't be called with one array. Raises what `fail` makes of the problem."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Some that are written in C have no signature: they are tried as they are.
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise fail(f"expected a function of one array x, found one of {signature}") from error


def is_async(function: Any) -> bool:
    """Return whether calling `function` gives an awaitable."""
    # An object whose `__call__` is async is no coroutine function itself.
    call = getattr(function, "__call__", None)  # noqa: B004  # whether it is async, not whether there is one
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def score_of(model: object, fail: Fail) -> Callable[[FloatArray], Any]:
    """Return what scores: a model's `score`, or the model itself. Raises what `fail` makes of the problem."""
    score = getattr(model, "score", model)
    if not callable(score):
        raise fail(f"expected a function of x, an object with score(x), or a class of such; found {model!r}")
    check_takes_one(score, fail)
    return score


def target_name(target: object) -> str:
    """Return the name of a function, a class, or the class of an object: `package.module:name`."""
    module = getattr(target, "__module__", None) or type(target).__module__
    return f"{module}:{getattr(target, '__qualname__', type(target).__qualname__)}"


def _is_options(part: object) -> bool:
    return not isinstance(part, type) and callable(getattr(part, "build", None))


def _part_name(part: object) -> str:
    """Return what messages call a part: its own name, else that of its class; a function by its module and name."""
    name = getattr(part, "name", None)
    if isinstance(name, str):
        return name
    return target_name(part) if isinstance(part, type) or inspect.isroutine(part) else type(part).__name__
