"""The schema: what runs is valid, what it can say of a broken config it says, and every key is described."""

import json
import re
import tomllib
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from streambatch.cli.schema import installed_schema
from streambatch.config.plugins import find_part
from streambatch.core.units import parse_duration, parse_size

ROOT = Path(__file__).parents[2]
SCHEMA = installed_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
BASE = """
    name = "rides"
    [source.rides_in]
    type = "file"
    path = "in.jsonl"
    [record]
    features = ["a"]
    [model]
    type = "linear"
    path = "model.npz"
    [sink.scores]
    type = "stdout"
    """


def with_line(section: str, line: str) -> dict[str, Any]:
    """Return the base config with a line added to a section, or a section."""
    if f"[{section}]" not in BASE:
        return tomllib.loads(f"{BASE}\n[{section}]\n{line}")
    return tomllib.loads(BASE.replace(f"[{section}]", f"[{section}]\n{line}"))


def configs_in(page: Path) -> list[str]:
    return list(re.findall(r"^(?:```toml|cat > [^\n]*)\n(.*?)^(?:```|END)$", page.read_text(), re.S | re.M))


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", ["starter.toml", "demo.toml"])
def test_our_own_configs_are_valid(name: str) -> None:
    config = tomllib.loads(files("streambatch.cli").joinpath(name).read_text())
    assert list(VALIDATOR.iter_errors(config)) == []


def test_configs_in_the_docs_are_valid() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    whole = [text for page in pages for text in configs_in(page) if re.search(r"^name = ", text, re.M)]
    assert len(whole) > 3
    for text in whole:
        assert [error.message for error in VALIDATOR.iter_errors(tomllib.loads(text))] == [], text


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("batch", "max_records = 1"),
        ("batch", 'max_records = "${RECORDS:-512}"'),
        ("batch", 'max_bytes = "1.5 MiB"'),
        ("batch", 'max_bytes = "${BYTES}"'),
        ("batch", "max_wait = 0.05"),
        ("batch", 'max_wait = "50ms"'),
        ("record", "shape = [1]"),
        ("http", 'listen = "off"'),
        ("dead_letter", "stop_at = 1"),
        ("source.other", 'type = "tcp"\nlisten = "127.0.0.1:0"'),
    ],
)
def test_what_runs_is_valid(section: str, line: str) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(with_line(section, line))] == []


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("batch", "max_recods = 1"),
        ("batch", "max_records = 0"),
        ("batch", "max_records = true"),
        ("batch", 'max_bytes = "1 Mb"'),
        ("batch", 'max_wait = "50 minutes"'),
        ("batch", "max_wait = -1"),
        ("record", "shape = 0"),
        ("record", 'dtype = "float16"'),
        ("dead_letter", "stop_at = 2"),
        ("source.other", 'type = "tcp"'),
        ("source.other", 'type = "kafka"'),
        ("source.other", 'path = "no.type"'),
        ("source.Other", 'type = "stdin"'),
        ("sink.other", 'type = "stdout"'),
        ("model", "sort = 1"),
        ("extra", "a = 1"),
    ],
)
def test_what_does_not_run_is_invalid(section: str, line: str) -> None:
    assert not VALIDATOR.is_valid(with_line(section, line))


@pytest.mark.parametrize("missing", ["name", "source", "record", "model", "sink"])
def test_what_is_required(missing: str) -> None:
    config = tomllib.loads(BASE)
    assert VALIDATOR.is_valid(config)
    del config[missing]
    assert not VALIDATOR.is_valid(config)


def test_every_key_is_described() -> None:
    assert undescribed(SCHEMA, "") == []


def undescribed(schema: Any, key: str) -> list[str]:
    """Return the dotted keys without a description."""
    if isinstance(schema, list):
        return [found for one in schema for found in undescribed(one, key)]
    if not isinstance(schema, dict):
        return []
    found = []
    for name, option in schema.get("properties", {}).items():
        if not option.get("description", "").rstrip("`").endswith((".", ")")):
            found.append(f"{key}.{name}")
        found += undescribed(option, f"{key}.{name}")
    for place in ("items", "additionalProperties", "anyOf", "oneOf"):
        found += undescribed(schema.get(place), key)
    return found


def test_every_part_that_is_registered_is_in_it() -> None:
    shown = json.dumps(SCHEMA)
    for group in ("sources", "steps", "models", "sinks"):
        for entry in entry_points(group=f"streambatch.{group}"):
            assert f'"const": "{entry.name}"' in shown
            assert find_part(group, entry.name) is not None


def test_defaults_are_what_the_options_have() -> None:
    batch = SCHEMA["properties"]["batch"]["properties"]
    assert batch["max_bytes"]["default"] == "4MiB"
    assert batch["max_wait"]["default"] == "50ms"
    assert parse_size("4MiB") == 4 << 20
    assert parse_duration("50ms") == 0.05


@pytest.mark.parametrize("text", ["1", "64KiB", "1.5 GiB", " 7 B", "x", "", "1 kb", "-1", "1e3", "5m"])
def test_sizes_are_valid_that_can_be_read(text: str) -> None:
    try:
        parse_size(text)
        is_readable = True
    except ValueError:
        is_readable = False
    assert VALIDATOR.is_valid(with_line("batch", f'max_bytes = "{text}"')) is is_readable


@pytest.mark.parametrize("text", ["1", "50ms", "1.5 h", " 7 s", "x", "", "1 min", "-1", "1e3", "30d", "5MiB"])
def test_durations_are_valid_that_can_be_read(text: str) -> None:
    try:
        parse_duration(text)
        is_readable = True
    except ValueError:
        is_readable = False
    assert VALIDATOR.is_valid(with_line("batch", f'max_wait = "{text}"')) is is_readable
