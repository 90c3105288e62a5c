"""Compare two configs, and tell changes that a running pipeline can take over from those that need a restart.

Secrets are compared and never shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from streambatch.config.config import Config
from streambatch.config.sections import SECTIONS
from streambatch.core.errors import ConfigError, ConfigProblem
from streambatch.core.text import repr_encodable, shortened
from streambatch.pipeline.settings import LATER

LIVE = (
    "model", "preprocess", "batch", "queue", "delivery", "workers.count", "workers.timeout", "workers.attempts",
    "dead_letter.stop_at",
)  # fmt: skip
"""Keys, and whole tables, that can change while a pipeline runs."""
SHOWN_MAX = 120
"""Characters of a value that are shown."""
_ABSENT = "nothing"


class Change(NamedTuple):
    """A key that differs, with both values as they are shown."""

    key: str
    before: str
    after: str

    @property
    def is_live(self) -> bool:
        """Whether the change can be made while the pipeline runs."""
        return any(self.key == live or self.key.startswith((f"{live}.", f"{live}[")) for live in LIVE)


def changes_between(before: Config, after: Config) -> list[Change]:
    """Return the keys that differ, in the order of the sections; a key missing on one side is shown as `nothing`."""
    old, new = dict(_flat(before.effective, "")), dict(_flat(after.effective, ""))
    changes = [
        Change(key, old.get(key, _ABSENT), new.get(key, _ABSENT))
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]
    # Sections, by the first part of a key: `batch.max_records`, `preprocess[0].type`.
    listed = {change.key.partition(".")[0].partition("[")[0] for change in changes}
    # A secret is redacted in both effective configs, so that only the options themselves can tell that it changed.
    secret = [section for section in _differing(before, after) if section not in listed]
    return changes + [Change(section, "a secret value", "another one") for section in secret]


def check_live(changes: list[Change], where: str) -> None:
    """Raise ConfigError with every change that needs a restart."""
    problems = [
        ConfigProblem(change.key, change.after, f"{change.before}, {LATER}") for change in changes if not change.is_live
    ]
    if problems:
        raise ConfigError(problems, where=where)


def _differing(before: Config, after: Config) -> Iterator[str]:
    """Yield the sections whose options differ, redacted values included."""
    for section in SECTIONS:
        name = "sources" if section == "source" else section
        if getattr(before, name) != getattr(after, name):
            yield section


def _flat(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for at, inner in enumerate(value):
            yield from _flat(inner, f"{key}[{at}]")
    elif value is not None:
        yield key, shortened(repr_encodable(repr(value)), SHOWN_MAX)
