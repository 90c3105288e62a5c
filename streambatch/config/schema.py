"""The config as a JSON Schema (draft 2020-12), made from the options classes of the parts that are installed.

The schema gives type, default, limits and description of every key. A config that runs is valid under it. Rules that no
schema can express, such as limits that contradict each other, are left to `streambatch check`.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from streambatch.config.sections import NAME, OPTIONS, Group, is_required
from streambatch.core.units import parse_duration, parse_size

Schema = dict[str, Any]
Parts = Mapping[Group, Mapping[str, type[Any]]]
"""The options classes of each group, by the name that a config gives as `type`."""

_QUANTITY = r"^\s*\d+(\.\d+)?\s*({})\s*$"
_UNITS = {
    "size": (parse_size, ("GiB", "MiB", "KiB"), _QUANTITY.format("|B|KiB|MiB|GiB")),
    "duration": (parse_duration, ("d", "h", "m", "s", "ms"), _QUANTITY.format("ms|s|m|h|d")),
}
"""For each unit: its parser, its suffixes from the largest, and the pattern of its texts."""
_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_PLACES = ("prefixItems", "items", "additionalProperties", "anyOf", "oneOf", "allOf")
_VARIABLE = {"$ref": "#/$defs/variable"}


def config_schema(parts: Parts) -> Schema:
    """Return the schema of a config that may use these parts."""
    source, sink = _named(parts, "sources", "source"), _named(parts, "sinks", "sink")
    named: Schema = {
        "name": {
            "description": "Name of the pipeline: a label of its metrics, and the folder of its state.",
            **_or_variable({"type": "string", "pattern": f"^{NAME.pattern}$"}),
        },
        "state_dir": {
            "type": "string",
            "description": "Folder of what a pipeline keeps; one process at a time may use it. Default: "
            "`$STATE_DIRECTORY`, else `.streambatch/<name>` beside the config.",
        },
        "source": {"description": "Where records come from; one or more, named `[source.<name>]`.", **source},
        "preprocess": {
            "type": "array",
            "description": "Steps from decoded to preprocessed features, in this order.",
            "items": _choice(parts, "steps"),
        },
        "model": {"description": "What scores the records.", **_choice(parts, "models")},
        "sink": {"description": "Where scores go; one, named `[sink.<name>]`.", **sink, "maxProperties": 1},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "streambatch config",
        "type": "object",
        "properties": named | {key: _options(cls) for key, cls in OPTIONS.items()},
        "required": ["name", "source", *filter(is_required, OPTIONS), "model", "sink"],
        "additionalProperties": False,
        "$defs": {
            "variable": {
                "type": "string",
                "pattern": r"\$\{",
                "description": "A value from the environment: ${VAR}, ${VAR:-default} or ${VAR:?message}.",
            }
        },
    }


def _named(parts: Parts, group: Group, key: str) -> Schema:
    return {
        "type": "object",
        "propertyNames": {"pattern": f"^{NAME.pattern}$"},
        "additionalProperties": {"description": f"One {key}.", **_choice(parts, group)},
        "minProperties": 1,
    }


def _choice(parts: Parts, group: Group) -> Schema:
    return {"oneOf": [_part(kind, cls) for kind, cls in sorted(parts[group].items())]}


def _part(kind: str, cls: type[Any]) -> Schema:
    """Return what a table with this `type` may hold."""
    schema = _options(cls)
    properties = {key: value for key, value in schema["properties"].items() if key != "name"}
    required = [key for key in schema.get("required", []) if key != "name"]
    return {
        **schema,
        "properties": {"type": {"const": kind, "description": "Which part it is."}, **properties},
        "required": ["type", *required],
    }


def _options(cls: type[Any]) -> Schema:
    """Return the schema of an options class; just an object for a plugin's class that pydantic can't describe."""
    try:
        # Pydantic knows types, defaults and limits; what follows makes its schema one for people who write TOML.
        schema = TypeAdapter(cls).json_schema()
    except PydanticUserError:
        schema = {"type": "object", "description": cls.__doc__ or cls.__name__, "properties": {}}
    described = _tidied(schema, schema.pop("$defs", {}))
    return {**described, "description": described.get("description", cls.__name__)}


def _tidied(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """Return pydantic's schema as a person writes a config: references resolved, no null, units as texts."""
    if "$ref" in schema:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return _tidied({**definitions[schema["$ref"].rpartition("/")[2]], **rest}, definitions)
    tidy = {_LIMITS.get(key, key): value for key, value in schema.items() if key != "title"}
    if "properties" in tidy:
        tidy["properties"] = {key: _tidied(value, definitions) for key, value in tidy["properties"].items()}
    for place in _PLACES:
        if isinstance(tidy.get(place), dict):
            tidy[place] = _tidied(tidy[place], definitions)
        elif isinstance(tidy.get(place), list):
            tidy[place] = [_tidied(one, definitions) for one in tidy[place] if one.get("type") != "null"]
    # An optional value is left with one alternative once null is gone.
    if len(tidy.get("anyOf", ())) == 1:
        tidy = {**tidy.pop("anyOf")[0], **tidy}
    return _described(_or_variable(_in_units(tidy)))


def _in_units(schema: Schema) -> Schema:
    """Allow a size or duration as text as well as a number, and show its default as text."""
    unit = schema.get("x-unit")
    if unit is None or "anyOf" in schema:
        return schema
    pattern = _UNITS[unit][2]
    number = {key: schema.pop(key) for key in ("type", *_LIMITS.values()) if key in schema}
    if schema.get("default") is not None:
        schema["default"] = _written(unit, schema["default"])
    return {**schema, "anyOf": [number, {"type": "string", "pattern": pattern}, _VARIABLE]}


def _written(unit: str, value: float) -> str | float:
    """Return a quantity as text in the largest unit that gives a whole number."""
    read, names, _ = _UNITS[unit]
    # Only a text that is read as the same number again: rounding must not change a default.
    for name in names:
        text = f"{value / read(f'1{name}'):.0f}{name}"
        if read(text) == value and not text.startswith("0"):
            return text
    return value


def _or_variable(schema: Schema) -> Schema:
    """Allow `${VAR}` where the value is not a free text, which could hold it anyway."""
    is_leaf = schema.get("type") in ("integer", "number", "boolean") or "enum" in schema or "const" in schema
    if not is_leaf and not (schema.get("type") == "string" and "pattern" in schema):
        return schema
    kept: Schema = {key: schema[key] for key in ("description", "default") if key in schema}
    value = {key: schema[key] for key in schema if key not in kept}
    return {**kept, "anyOf": [value, _VARIABLE]}


def _described(schema: Schema) -> Schema:
    """Keep the first paragraph of a description, in one line, and no default that means absence."""
    if schema.get("default", ...) is None:
        del schema["default"]
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split("\n\n")[0].split())
    return schema
