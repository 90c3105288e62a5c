"""Load a config file as the checked options of every part.

The options of sources, sink, steps and model are instances of the classes that the plugin lookup returns. Nothing is
opened and no model is loaded here, so that a config can be checked anywhere.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import msgspec

from streambatch.config.crosschecks import cross_check
from streambatch.config.draft import Draft, read_draft
from streambatch.config.sections import (
    SECTIONS,
    ConfiguredPart,
    ConfiguredSink,
    ConfiguredSource,
    Find,
    Sections,
    Tables,
    option_fields,
    read_sections,
)
from streambatch.core.errors import ConfigError
from streambatch.core.redaction import REDACTED, looks_secret, redacted
from streambatch.core.text import encodable

_SHOWN_ORDER = (*(key for key in SECTIONS if key != "sink"), "sink")
"""Sections as the effective config lists them: what comes in first, where scores go last."""


@dataclass(frozen=True, kw_only=True)
class Config(Tables):
    """A checked config: the sections in `Tables`, and these. Paths are absolute if the config's own path is."""

    path: Path
    name: str
    state_dir: Path
    sources: tuple[ConfiguredSource, ...]
    preprocess: tuple[ConfiguredPart, ...]
    model: ConfiguredPart
    sink: ConfiguredSink
    effective: Mapping[str, Any]
    """Every section with defaults filled in and secrets redacted, as JSON would hold it."""
    digest: str
    """sha256 of `effective` without the folder it lies in, so that a project that is moved as a whole keeps it."""

    @property
    def folder(self) -> Path:
        """The folder of the config file, which relative paths start from."""
        return self.path.parent


def load_config(
    path: str | Path, find: Find, *, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Config:
    """Read and check a config.

    overrides: texts such as `batch.max_records=256`. environ: by default the process's own.
    Raises ConfigError with every problem found.
    """
    environ = os.environ if environ is None else environ
    draft = read_draft(Path(path), overrides, environ)
    sections = read_sections(draft, find)
    state_dir = _state_dir(draft, sections, environ)
    cross_check(draft, sections, state_dir)
    # Every check has run by now: all mistakes are reported at once.
    if draft.problems:
        raise ConfigError(draft.problems, where=str(path))
    return _config(draft, sections, state_dir)


def restore_config(path: Path, effective: Mapping[str, Any], find: Find) -> Config:
    """Return the config that a run recorded as effective; its secrets stay redacted.

    Raises ConfigError when a part of it can't be built any more.
    """
    draft = Draft(path.absolute(), _without_absent(effective))
    sections = read_sections(draft, find)
    if draft.problems:
        raise ConfigError(draft.problems, where=f"{path} as recorded")
    return _config(draft, sections, Path(str(effective["state_dir"])))


def _without_absent(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_absent(inner) for key, inner in value.items() if inner is not None}
    return [_without_absent(inner) for inner in value] if isinstance(value, list) else value


def _state_dir(draft: Draft, sections: Sections, environ: Mapping[str, str]) -> Path:
    if sections.state_dir:
        return draft.path.parent / sections.state_dir
    # systemd may name several folders, separated by colons; the first is used.
    by_systemd = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(by_systemd) if by_systemd else draft.path.parent / ".streambatch" / str(sections.name)


def _config(draft: Draft, sections: Sections, state_dir: Path) -> Config:
    (sink,) = sections.sinks.values()
    model: Any = sections.model
    built = {
        **sections.tables,
        "source": sections.sources,
        "preprocess": sections.preprocess,
        "model": model,
        "sink": sections.sinks,
    }
    shown = {key: _plain(built[key]) for key in _SHOWN_ORDER}
    effective = _redact({"name": sections.name, "state_dir": str(state_dir), **shown}, "", draft.secrets)
    return Config(
        path=draft.path,
        name=str(sections.name),
        state_dir=state_dir,
        sources=tuple(sections.sources.values()),
        preprocess=sections.preprocess,
        model=model,
        sink=sink,
        effective=effective,
        digest=_digest(effective, draft.path.parent),
        **sections.tables,
    )


def _plain(value: Any) -> Any:
    """Return options as tables, lists and scalars."""
    if isinstance(value, ConfiguredPart):
        return {"type": value.type, **{key: v for key, v in _plain(value.options).items() if key != "name"}}
    if is_dataclass(value) and not isinstance(value, type):
        return {option.name: _plain(getattr(value, option.name)) for option in option_fields(type(value))}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _redact(value: Any, key: str, secrets: set[str]) -> Any:
    """Hide secrets: by key, by having come from a variable that holds one, and user and password in addresses."""
    name = key.rpartition(".")[2]
    if isinstance(value, dict):
        return {inner: _redact(value[inner], f"{key}.{inner}".lstrip("."), secrets) for inner in value}
    if isinstance(value, list):
        return [_redact(inner, f"{key}[{at}]", secrets) for at, inner in enumerate(value)]
    # A number or a switch is no secret, whatever its key is called, unless it came from one.
    if value is not None and (key in secrets or (isinstance(value, str) and looks_secret(name))):
        return REDACTED
    return redacted(value) if isinstance(value, str) else value


def _digest(effective: Mapping[str, Any], folder: Path) -> str:
    """Return the sha256 of the config's canonical JSON, in hexadecimal."""
    # Deterministic key order, so that equal configs have equal digests whatever the order in the file.
    moved = _relative(effective, f"{folder}{os.sep}")
    return hashlib.sha256(msgspec.json.encode(moved, order="deterministic")).hexdigest()


def _relative(value: Any, folder: str) -> Any:
    if isinstance(value, Mapping):
        return {encodable(key): _relative(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [_relative(inner, folder) for inner in value]
    return encodable(value.removeprefix(folder)) if isinstance(value, str) else value
