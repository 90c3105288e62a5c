"""Writes the reference pages from what the program knows: option classes, commands, metrics. `make docs` runs it.

The pages are checked in, and a test compares them with fresh ones: no key, command or metric is without its line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import typer.main

from streambatch.cli.app import app
from streambatch.config.plugins import find_part, installed
from streambatch.config.schema import config_schema
from streambatch.config.sections import SECTIONS, Group
from streambatch.core.units import format_size
from streambatch.observe.catalogue import CATALOGUE, DEAD_LETTERS, DROPPED, Metric

GROUPS: tuple[Group, ...] = get_args(Group)
FOLDER = Path(__file__).parent / "reference"
_HEADERS = {"source": "[source.<name>]", "preprocess": "[[preprocess]]", "sink": "[sink.<name>]"}
_GENERATED = "<!-- Made by docs/generate.py: change the program and run `make docs`. -->\n"
_CONFIG = f"""# The config

{_GENERATED}
A config is TOML. Unknown keys, wrong values and impossible combinations are errors; `streambatch check` finds all of
them at once, and `streambatch schema` prints this page for programs.

- A **size** is a number of bytes or a text: `512`, `64KiB`, `4MiB`, `1GiB`. A **duration** is a number of seconds or a
  text: `0.05`, `50ms`, `1s`, `5m`, `2h`, `30d`.
- Names of pipelines, sources and sinks consist of `a-z`, `0-9` and `_`, and start with a letter.
- Relative paths are relative to the config's folder.
- A text may hold `${{VAR}}`, `${{VAR:-default}}` or `${{VAR:?message}}`; `$${{` is a plain `${{`.
- `--set batch.max_wait=20ms` overrides a key, and so does `STREAMBATCH_BATCH__MAX_WAIT=20ms` in the environment;
  `--set` wins. `preprocess[0].scale` is a key of the first step.
- A key without a default is not used when it is absent, unless its text says what then.
"""
_COMMANDS = f"""# Commands

{_GENERATED}
Errors are printed on stderr, one on each line, such as `error: <file>:<line>: <key>: found <what>; allowed: <what>`.
Exit codes of all commands: 0 done or clean stop; 1 failed; 2 usage, config or held state; 3 stopped with work
unfinished.
"""
_METRICS = f"""# Metrics

{_GENERATED}
Served at `/metrics` of the admin port, `127.0.0.1:9464` unless `[http] listen` says otherwise. `pipeline` is the
config's name, `source` and `sink` are the names of its tables. Counters are there from the start, at 0, for every value
of their labels.
"""
_FAMILIES = {"counter": "Counters", "gauge": "Gauges", "histogram": "Histograms"}


def main() -> None:
    """Write every page."""
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


def pages() -> dict[str, str]:
    """Return the text of every generated page by its file name."""
    return {
        "config.md": config_page(built_in_schema()),
        "cli.md": cli_page(),
        "metrics.md": metrics_page(CATALOGUE),
    }


def built_in_schema() -> dict[str, Any]:
    """Return the schema of a config that uses no plugins."""
    parts = {group: {name: find_part(group, name) for name in installed(group)} for group in GROUPS}
    return config_schema(
        {
            group: {name: cls for name, cls in found.items() if cls.__module__.startswith("streambatch.")}
            for group, found in parts.items()
        }
    )


def config_page(schema: Mapping[str, Any]) -> str:
    """Return the reference of the config."""
    properties, required = schema["properties"], schema["required"]
    top = {key: properties[key] for key in properties if key not in SECTIONS}
    lines = [_CONFIG, "## Top level", "", *_keys(top, required)]
    for key in SECTIONS:
        lines += _section(key, properties[key], is_required=key in required)
    return "\n".join(lines) + "\n"


def _section(key: str, schema: Mapping[str, Any], *, is_required: bool) -> Iterator[str]:
    yield from ("", f"## {_HEADERS.get(key, f'[{key}]')}", "")
    told = schema["description"]
    yield f"{told} Required." if is_required else told
    parts = schema.get("additionalProperties") or schema.get("items") or schema
    if "oneOf" not in parts:
        yield from ("", *_keys(schema["properties"], schema.get("required", [])))
        return
    for part in parts["oneOf"]:
        rest = {name: option for name, option in part["properties"].items() if name != "type"}
        yield from ("", f'### {key}: type = "{part["properties"]["type"]["const"]}"', "", part["description"])
        if rest:
            yield from ("", *_keys(rest, part["required"]))


def _keys(properties: Mapping[str, Any], required: Iterable[str]) -> Iterator[str]:
    yield from ("| key | holds | default | |", "| --- | --- | --- | --- |")
    for key, option in properties.items():
        default = "required" if key in required else _literal(option["default"]) if "default" in option else ""
        yield f"| `{key}` | {_holds(option)} | {default} | {_cell(option['description'])} |"
        for inner, nested in _tables_in(option):
            need = "required" if inner in nested.get("required", []) else ""
            value = nested["properties"][inner]
            shown = need or (_literal(value["default"]) if "default" in value else "")
            yield f"| `{key}.{inner}` | {_holds(value)} | {shown} | {_cell(value['description'])} |"


def _tables_in(option: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for one in (option, *option.get("anyOf", ())):
        for inner in one.get("properties", ()):
            yield inner, one


def _holds(option: Mapping[str, Any]) -> str:
    """Return what a key may hold, in words."""
    if "x-unit" in option:
        unit = str(option["x-unit"])
        return unit + _limits(option["anyOf"][0], is_size=unit == "size")
    if "anyOf" in option:
        words = [_holds(one) for one in option["anyOf"] if "$ref" not in one]
        return " or ".join(dict.fromkeys(words))
    if "enum" in option or "const" in option:
        return " \\| ".join(f"`{value}`" for value in option.get("enum", [option.get("const")]))
    kind = str(option.get("type", "value"))
    if kind == "array":
        return f"list of {_holds(option['items'])}s"
    nouns = {"string": "text", "object": "table", "boolean": "`true` \\| `false`"}
    return nouns.get(kind, kind) + _limits(option)


def _limits(option: Mapping[str, Any], *, is_size: bool = False) -> str:
    said = [
        f"{word} {format_size(option[limit]) if is_size else format(option[limit], 'g')}"
        for limit, word in (
            ("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if limit in option
    ]  # fmt: skip
    return ", " + ", ".join(said) if said else ""


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def cli_page() -> str:
    """Return the reference of the commands."""
    group: Any = typer.main.get_command(app)
    lines = [_COMMANDS, "## streambatch", "", *_options(group)]
    for name, command in _commands(group):
        arguments = [option for option in command.params if option.param_type_name == "argument"]
        usage = " ".join([name, *(_argument(option) for option in arguments), "[OPTIONS]"])
        lines += ["", f"## streambatch {name}", "", f"    streambatch {usage}", "", *command.help.splitlines()]
        if arguments:
            lines += ["", *(f"- `{option.metavar}`: {option.help}" for option in arguments)]
        lines += ["", *_options(command)] if len(command.params) > len(arguments) else []
    return "\n".join(lines) + "\n"


def _commands(group: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command by its full name; a group's own are called `state show`."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", one) for inner, one in _commands(command))
        else:
            yield name, command


def _argument(option: Any) -> str:
    name = str(option.metavar)
    return name if option.required or name.startswith("[") else f"[{name}]"


def _options(command: Any) -> Iterator[str]:
    shown = [option for option in command.params if option.param_type_name == "option"]
    yield from ("| option | default | |", "| --- | --- | --- |")
    for option in shown:
        flags = ", ".join(option.opts)
        value = f" {option.metavar}" if option.metavar else ""
        default = "" if option.default in (None, False, ()) or callable(option.default) else f"`{option.default}`"
        yield f"| `{flags}{value}` | {default} | {_cell(option.help or '')} |"


def metrics_page(catalogue: Iterable[Metric]) -> str:
    """Return the reference of the metrics."""
    metrics = list(catalogue)
    lines = [_METRICS.rstrip("\n")]
    for kind, title in _FAMILIES.items():
        lines += ["", f"## {title}", "", "| metric | labels | unit | |", "| --- | --- | --- | --- |"]
        for metric in metrics:
            if metric.kind == kind:
                labels = ", ".join(f"`{label}`" for label in metric.labels)
                lines.append(f"| `{metric.name}` | {labels} | {metric.unit} | {_cell(metric.help)} |")
    lines += ["", "## Why records die", "", "| `stage` | `reason` |", "| --- | --- |"]
    lines += [f"| `{stage}` | `{reason}` |" for stage, reason in DEAD_LETTERS]
    lines += ["", "## Why records are dropped", "", "| `reason` | `intentional` |", "| --- | --- |"]
    lines += [f"| `{reason}` | `{intentional}` |" for reason, intentional in DROPPED]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
