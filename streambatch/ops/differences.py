"""Differences between what a run recorded and what is found now, in config, model or code. Pure."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from streambatch.durability.manifest import code_revision
from streambatch.version import __version__

What = Literal["config", "model", "input", "batch", "score", "dead_letter", "output"]


class Difference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that is not as recorded. where: a key, partition or file. Other fields name a record, if it is one."""

    what: What
    where: str
    recorded: Any
    found: Any
    batch: int | None = None
    source: str | None = None
    partition: str | None = None
    position: int | None = None
    id: int | str | None = None

    def __str__(self) -> str:
        record = ""
        if self.batch is not None:
            record = f" (batch {self.batch}"
            if self.partition is not None:
                record += f", {self.source} {self.partition}, position {self.position}"
            record += f", id {self.id})" if self.id is not None else ")"
        name = self.what.replace("_", " ")
        then, now = ("written", "scored again") if self.what in ("score", "dead_letter") else ("recorded", "found")
        return f"{name} {self.where}{record}: {then} {_text(self.recorded)}, {now} {_text(self.found)}"


def config_differences(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[Difference]:
    """Return the keys whose values differ, in the order of the config."""
    before, now = dict(_flat(recorded, "")), dict(_flat(found, ""))
    keys = [*before, *(key for key in now if key not in before)]
    return [
        Difference(what="config", where=key, recorded=before.get(key), found=now.get(key))
        for key in keys
        if before.get(key) != now.get(key)
    ]


def code_differences(manifest: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the recorded and the running version of whatever differs, by its name."""
    recorded, found = code_of(manifest), running_code()
    return {name: (recorded[name], found[name]) for name in found if recorded[name] != found[name]}


def code_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the versions that a manifest records."""
    return {**manifest["streambatch"], "python": manifest["python"], "numpy": manifest["numpy"]}


def running_code() -> dict[str, Any]:
    """Return the versions that run now."""
    return {
        "version": __version__,
        "revision": code_revision(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping) for inner in value):
        for at, inner in enumerate(value):
            yield from _flat(inner, f"{key}[{at}]")
    else:
        yield key, list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else str(msgspec.json.encode(value), "utf-8")
