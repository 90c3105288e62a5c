"""The config as a JSON Schema (draft 2020-12), made from the option classes of the parts that are installed.

Says of every key what it holds, its default and its limits. A config that runs is valid; what no schema can say, such
as limits that contradict each other, is left to `streambatch check`.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from streambatch.config.sections import NAME, Group, HttpOptions
from streambatch.core.budget import Limits
from streambatch.core.schema import RecordSchema
from streambatch.core.units import parse_duration, parse_size
from streambatch.delivery.dead_letters import DeadLetterOptions
from streambatch.durability.manifest import RunsOptions
from streambatch.durability.resume import Delivery
from streambatch.microbatch.inbox import QueueLimits
from streambatch.microbatch.window import BatchPolicy
from streambatch.observe.drift import DriftOptions
from streambatch.observe.tracing import OtelOptions
from streambatch.scoring.executors.choice import Workers

Schema = dict[str, Any]
Parts = Mapping[Group, Mapping[str, type[Any]]]
"""Of every group the option classes by the name that a config gives as `type`."""

_SECTIONS: Mapping[str, type[Any]] = {
    "record": RecordSchema,
    "queue": QueueLimits,
    "limits": Limits,
    "batch": BatchPolicy,
    "workers": Workers,
    "dead_letter": DeadLetterOptions,
    "delivery": Delivery,
    "runs": RunsOptions,
    "http": HttpOptions,
    "drift": DriftOptions,
    "otel": OtelOptions,
}
_QUANTITY = r"^\s*\d+(\.\d+)?\s*({})\s*$"
_UNITS = {
    "size": (parse_size, ("GiB", "MiB", "KiB"), _QUANTITY.format("|B|KiB|MiB|GiB")),
    "duration": (parse_duration, ("d", "h", "m", "s", "ms"), _QUANTITY.format("ms|s|m|h|d")),
}
"""Of each unit: how it is read, its units as they are written, largest first, and what its texts match."""
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
        "properties": named | {key: _options(cls) for key, cls in _SECTIONS.items()},
        "required": ["name", "source", "record", "model", "sink"],
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
    """Return the schema of an options class; of one that pydantic can't describe, that it is a table."""
    try:
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
    if len(tidy.get("anyOf", ())) == 1:
        tidy = {**tidy.pop("anyOf")[0], **tidy}
    return _told(_or_variable(_in_units(tidy)))


def _in_units(schema: Schema) -> Schema:
    """Let a size or duration be a text as well, and show its default as one."""
    unit = schema.get("x-unit")
    if unit is None or "anyOf" in schema:
        return schema
    pattern = _UNITS[unit][2]
    number = {key: schema.pop(key) for key in ("type", *_LIMITS.values()) if key in schema}
    if schema.get("default") is not None:
        schema["default"] = _written(unit, schema["default"])
    return {**schema, "anyOf": [number, {"type": "string", "pattern": pattern}, _VARIABLE]}


def _written(unit: str, value: float) -> str | float:
    """Return a quantity in the largest unit in which it is whole."""
    read, names, _ = _UNITS[unit]
    for name in names:
        text = f"{value / read(f'1{name}'):.0f}{name}"
        if read(text) == value and not text.startswith("0"):
            return text
    return value


def _or_variable(schema: Schema) -> Schema:
    """Let a value that isn't a text of any form come from the environment."""
    is_leaf = schema.get("type") in ("integer", "number", "boolean") or "enum" in schema or "const" in schema
    if not is_leaf and not (schema.get("type") == "string" and "pattern" in schema):
        return schema
    kept: Schema = {key: schema[key] for key in ("description", "default") if key in schema}
    value = {key: schema[key] for key in schema if key not in kept}
    return {**kept, "anyOf": [value, _VARIABLE]}


def _told(schema: Schema) -> Schema:
    """Keep the first paragraph of a description, in one line, and no default that means absence."""
    if schema.get("default", ...) is None:
        del schema["default"]
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split("\n\n")[0].split())
    return schema
