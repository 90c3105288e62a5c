"""How a part declares its options: a frozen dataclass, checked when it is built, from a config or by hand.

The classes stay plain to their callers; pydantic does the checking, and its errors leave here as ConfigError.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic.fields import FieldInfo

from streambatch.core.errors import ConfigError, ConfigProblem, OptionError
from streambatch.core.text import toml_text
from streambatch.core.units import format_duration, format_size

T = TypeVar("T")

_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass_transform(frozen_default=True)
def options(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass whose values are checked and whose unknown names are refused.

    Building one with wrong values raises ConfigError with every problem. A check over several options belongs in
    `__post_init__` and raises OptionError.
    """
    checked: Any = checked_dataclass(cls, frozen=True, config=_STRICT)
    build = checked.__init__

    def __init__(self: object, *args: Any, **kwargs: Any) -> None:
        try:
            build(self, *args, **kwargs)
        except ValidationError as error:
            # `from None`, since pydantic's own text says the same in terms of its types.
            raise ConfigError(problems_of(error, checked), where=cls.__name__) from None

    checked.__init__ = __init__
    return checked  # type: ignore[no-any-return]  # pydantic's wrapper is the class itself


def problems_of(error: ValidationError, cls: Any = None) -> list[ConfigProblem]:
    """Return pydantic's findings as key, found, allowed; alternatives of one key become one problem.

    cls: the options that were built, if it was options.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for item in error.errors(include_url=False):
        key, was, allowed = _read(item, cls)
        # pydantic reports each branch of a union as an error of its own.
        _, choices = found.setdefault(".".join(key), (was, []))
        if allowed not in choices:
            choices.append(allowed)
    return [ConfigProblem(key, was, " or ".join(choices)) for key, (was, choices) in found.items()]


_ALLOWED: dict[str, Callable[[dict[str, Any]], str]] = {
    "extra_forbidden": lambda c: "no such key",
    "unexpected_keyword_argument": lambda c: "no such key",
    "string_type": lambda c: "a string",
    "string_unicode": lambda c: "a string in UTF-8",
    "int_type": lambda c: "an integer",
    "int_parsing": lambda c: "an integer",
    "int_parsing_size": lambda c: "an integer of fewer digits",
    "int_from_float": lambda c: "an integer",
    "float_type": lambda c: "a number",
    "float_parsing": lambda c: "a number",
    "finite_number": lambda c: "a finite number",
    "bool_type": lambda c: "true or false",
    "bool_parsing": lambda c: "true or false",
    "list_type": lambda c: "a list",
    "tuple_type": lambda c: "a list",
    "set_type": lambda c: "a list",
    "dict_type": lambda c: "a table",
    "mapping_type": lambda c: "a table",
    "dataclass_type": lambda c: "a table",
    "literal_error": lambda c: c["expected"],
    "greater_than_equal": lambda c: f"at least {c['ge']}",
    "greater_than": lambda c: f"more than {c['gt']}",
    "less_than_equal": lambda c: f"at most {c['le']}",
    "less_than": lambda c: f"less than {c['lt']}",
    "too_short": lambda c: f"at least {c['min_length']} items",
    "too_long": lambda c: f"at most {c['max_length']} items",
    "string_too_short": lambda c: "a string that is not empty",
    "string_pattern_mismatch": lambda c: f"a name that matches {c['pattern']}",
}


_MISSING = ("missing", "missing_argument", "missing_keyword_only_argument", "missing_positional_only_argument")
_NOUNS = {
    str: "a string", int: "an integer", float: "a number", bool: "true or false", list: "a list", tuple: "a list",
    dict: "a table",
}  # fmt: skip
_IN_UNITS: dict[str, Callable[[float], str]] = {"size": format_size, "duration": format_duration}


def _read(item: Any, cls: Any) -> tuple[tuple[str, ...], str, str]:
    kind, context = item["type"], item.get("ctx", {})
    key = _key(item["loc"], cls)
    cause = context.get("error")
    if isinstance(cause, OptionError):
        return (*key, cause.option), str(cause.found), cause.allowed
    if isinstance(cause, Exception):
        return key, toml_text(item["input"]), str(cause)
    if kind in _MISSING:
        option = cls.__pydantic_fields__.get(key[0]) if len(key) == 1 else None
        return key, "nothing", f"{_noun(option and option.annotation)} (required)"
    if unit := _unit(cls, key):
        # Bounds come in bytes or seconds and are shown as a config has them. A bound of 0 needs no unit.
        bounds = {name: bound for name, bound in context.items() if bound and isinstance(bound, int | float)}
        context = {**context, **{name: _IN_UNITS[unit](bound) for name, bound in bounds.items()}}
    allowed = _ALLOWED[kind](context) if kind in _ALLOWED else item["msg"].removeprefix("Input should be ")
    return key, toml_text(item["input"]), allowed


def _key(location: Iterable[int | str], cls: Any) -> tuple[str, ...]:
    """Return the names a person knows: an argument given by position has its option's."""
    first, *others = location or ("",)
    if isinstance(first, int):
        first = [option.name for option in fields(cls) if option.init][first]
    return tuple(str(part) for part in (first, *others) if part != "" and not _names_a_type(part))


def _unit(kind: Any, key: Sequence[str]) -> str | None:
    """Return the unit of the option at a key, `size` or `duration`; None for any other."""
    extra = getattr(kind, "json_schema_extra", None)
    if not key and isinstance(extra, dict) and "x-unit" in extra:
        return str(extra["x-unit"])
    option = getattr(kind, "__pydantic_fields__", {}).get(key[0]) if key else None
    if option is not None:
        return _unit(option, key[1:])
    within = [kind.annotation] if isinstance(kind, FieldInfo) else get_args(kind)
    return next((unit for one in within if (unit := _unit(one, key))), None)


def _noun(annotation: Any) -> str:
    """Return what a type is called in a message."""
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(map(repr, get_args(annotation)))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_noun(one) for one in get_args(annotation) if one is not NoneType))
    return _NOUNS.get(origin or annotation, "a value")


def _names_a_type(part: object) -> bool:
    """Whether a piece of pydantic's location is the branch of a union and not a key a person wrote."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part or part[:1].isupper())
