"""What of a run is no longer as it was recorded: config, model, code. Pure: what was recorded and what is found in."""

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
    """One thing that is not as recorded. where: a key, a partition, a file; the rest names the record, if it is one."""

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
        return f"{name} {self.where}{record}: {then} {_told(self.recorded)}, {now} {_told(self.found)}"


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
    """Return what of the code is another one now: recorded and found, by what it is."""
    recorded, found = code_of(manifest), running_code()
    return {name: (recorded[name], found[name]) for name in found if recorded[name] != found[name]}


def code_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of the code."""
    return {**manifest["streambatch"], "python": manifest["python"], "numpy": manifest["numpy"]}


def running_code() -> dict[str, Any]:
    """Return the same of the code that runs now."""
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


def _told(value: Any) -> str:
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else str(msgspec.json.encode(value), "utf-8")
