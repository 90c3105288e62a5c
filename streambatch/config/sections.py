"""Build the checked options of every section of a config from its tables.

This module holds the one table of sections: `Tables` and `SECTIONS`. The reader here, the schema, the effective config,
the reference page and the comparison of two configs all follow it. A new section takes a field in `Tables` and a name
in `SECTIONS`. All problems of all sections are found in one pass.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from streambatch.config.draft import Draft
from streambatch.core.budget import Limits
from streambatch.core.errors import ConfigError, ConfigProblem, OptionError
from streambatch.core.options import options
from streambatch.core.parts import Sink, Source
from streambatch.core.schema import RecordSchema
from streambatch.core.text import toml_text
from streambatch.core.wrapping import as_sink, as_source
from streambatch.delivery.dead_letters import DeadLetterOptions
from streambatch.durability.options import Delivery, RunsOptions
from streambatch.microbatch.inbox import QueueLimits
from streambatch.microbatch.window import BatchPolicy
from streambatch.net.addresses import ListenAddress, parse_address
from streambatch.observe.drift import DriftOptions
from streambatch.observe.tracing import OtelOptions
from streambatch.scoring.executors.choice import Workers

T = TypeVar("T")
Group = Literal["sources", "steps", "models", "sinks"]
"""The four kinds of parts, as their entry points are called."""
Find = Callable[[Group, str | None], type[Any]]
"""Returns the options class registered under a `type`; raises OptionError that lists the registered types."""

NAME = re.compile(r"[a-z][a-z0-9_]*")
"""Names of pipelines, sources and sinks."""
_TOKEN = re.compile(r"[!-~]+")
PATHS = ("path", "ca_file")
"""Options that hold paths of files."""
_INDEX = re.compile(r"\.(\d+)(?=\.|$)")
SECTIONS = (
    "source", "record", "queue", "limits", "batch", "preprocess", "model", "workers", "sink", "dead_letter", "delivery",
    "runs", "http", "drift", "otel",
)  # fmt: skip
"""All sections, in the order of their reference: the fields of `Tables`, and the four that name parts by `type`."""


@options
class HttpOptions:
    """The admin port."""

    listen: ListenAddress = "127.0.0.1:9464"
    """Host and port of metrics, health, status and live page; `off` for none."""
    token: str | None = field(default=None, repr=False)
    """The token that the live page, `/status`, `/config` and `/-/` need unless `listen` is a loopback address: sent as
    `Authorization: Bearer TOKEN`, or once as `/?token=TOKEN`. Without a token they refuse every request there."""

    lifecycle: bool = False
    """Answer `POST /-/reload`, which reads this file again."""

    def __post_init__(self) -> None:
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            found = "characters that no header can hold" if self.token else "an empty string"
            raise OptionError("token", found, "one or more visible ASCII characters, such as ${ADMIN_TOKEN}")
        if self.listen != "off":
            try:
                parse_address(self.listen)
            except OptionError as error:
                raise OptionError("listen", error.found, f"{error.allowed}; or 'off'") from None


@dataclass(frozen=True, kw_only=True)
class ConfiguredPart:
    """The checked options of a source, step, model or sink, with the `type` that its table gave."""

    type: str
    options: Any


@dataclass(frozen=True, kw_only=True)
class ConfiguredSource(ConfiguredPart):
    """A configured source; `source` is its options, wrapped if they are no `Source`."""

    # Not compared: a wrapped source is equal to itself only, and two configs are compared by their options.
    source: Source = field(compare=False, repr=False)

    @classmethod
    def of(cls, type: str, options: Any) -> ConfiguredSource:
        """Return the source that these options make."""
        return cls(type=type, options=options, source=as_source(options))


@dataclass(frozen=True, kw_only=True)
class ConfiguredSink(ConfiguredPart):
    """A configured sink; `sink` is its options, wrapped if they are no `Sink`."""

    sink: Sink = field(compare=False, repr=False)  # as with a source

    @classmethod
    def of(cls, type: str, options: Any) -> ConfiguredSink:
        """Return the sink that these options make."""
        return cls(type=type, options=options, sink=as_sink(options))


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The sections with a fixed set of keys, each as the options class that says what it may hold."""

    record: RecordSchema
    queue: QueueLimits
    limits: Limits
    batch: BatchPolicy
    workers: Workers
    dead_letter: DeadLetterOptions
    delivery: Delivery
    runs: RunsOptions
    http: HttpOptions
    drift: DriftOptions
    otel: OtelOptions


OPTIONS: Mapping[str, type[Any]] = get_type_hints(Tables)
"""The options class of each section in `Tables`."""


@dataclass(frozen=True, kw_only=True)
class Sections:
    """The sections that could be built. A section or part with a problem is missing from them."""

    name: str | None
    state_dir: str | None
    sources: Mapping[str, ConfiguredSource]
    preprocess: tuple[ConfiguredPart, ...]
    model: ConfiguredPart | None
    sinks: Mapping[str, ConfiguredSink]
    tables: Mapping[str, Any]
    """Options of the sections in `Tables`, by key; complete if the draft has no problems."""

    def get(self, cls: type[T]) -> T | None:
        """Return the options of the section that `cls` describes; None if it has a problem."""
        return next((built for built in self.tables.values() if isinstance(built, cls)), None)


def is_required(section: str) -> bool:
    """Whether a section in `Tables` must be written, because one of its options has no default."""
    return any(one.default is MISSING and one.default_factory is MISSING for one in option_fields(OPTIONS[section]))


def read_sections(draft: Draft, find: Find) -> Sections:
    """Build the options of every section of the draft; problems are noted in the draft."""
    return _SectionReader(draft, find).read()


class _SectionReader:
    def __init__(self, draft: Draft, find: Find) -> None:
        self._draft, self._find = draft, find
        self._tables = draft.tables
        self._base = draft.path.parent

    def read(self) -> Sections:
        self._check_keys("", self._tables, ("name", "state_dir", *SECTIONS))
        name, state_dir = self._name(), self._text("state_dir")
        parts = {"source": self._sources, "preprocess": self._steps, "model": self._model, "sink": self._sink}
        # One after the other, so that problems are listed in the order of the reference.
        built: dict[str, Any] = {
            key: parts[key]() if key in parts else self._section(key, OPTIONS[key]) for key in SECTIONS
        }
        return Sections(
            name=name,
            state_dir=state_dir,
            sources=built["source"],
            preprocess=built["preprocess"],
            model=built["model"],
            sinks=built["sink"],
            tables={key: built[key] for key in OPTIONS if built[key] is not None},
        )

    def _name(self) -> str | None:
        if "name" not in self._tables:
            self._draft.problem("name", "nothing", "a name of a-z, 0-9 and _ that starts with a letter (required)")
            return None
        name = self._text("name")
        return name if name is not None and self._is_name("name", name) else None

    def _text(self, key: str) -> str | None:
        value = self._tables.get(key)
        if value is None or isinstance(value, str):
            return value
        self._draft.problem(key, self._draft.shown(key, toml_text(value)), "a string")
        return None

    def _is_name(self, key: str, name: str) -> bool:
        if NAME.fullmatch(name):
            return True
        self._draft.problem(key, toml_text(name), "a name of a-z, 0-9 and _ that starts with a letter")
        return False

    def _section(self, key: str, cls: type[T]) -> T | None:
        if key not in self._tables:
            if is_required(key):
                self._draft.problem(key, "nothing", f"a table [{key}] (required)")
                return None
            return cls()
        table = self._table(key, self._tables[key])
        if table is None:
            return None
        has_path = any(option.name in PATHS for option in option_fields(cls))
        return self._build(key, cls, self._anchored(table) if has_path else table)

    def _named(self, key: str, group: Group, allowed: str) -> dict[str, ConfiguredPart]:
        """Return the parts of the tables `[key.<name>]` by their names."""
        tables = self._tables.get(key)
        if not isinstance(tables, dict) or not tables:
            self._draft.problem(key, "nothing" if not tables else self._draft.shown(key, toml_text(tables)), allowed)
            return {}
        parts = {}
        for name, value in tables.items():
            at = f"{key}.{name}"
            is_named = self._is_name(at, name)
            table = self._table(at, value)
            part = None if table is None else self._part(at, group, self._anchored(table), name=name)
            if part is not None and is_named:
                parts[name] = part
        return parts

    def _sources(self) -> dict[str, ConfiguredSource]:
        parts = self._named("source", "sources", "one or more tables, such as [source.rides_in]")
        return {name: ConfiguredSource.of(part.type, part.options) for name, part in parts.items()}

    def _sink(self) -> dict[str, ConfiguredSink]:
        tables = self._tables.get("sink")
        allowed = "exactly one table, such as [sink.scores]"
        if isinstance(tables, dict) and len(tables) > 1:
            self._draft.problem("sink", f"{len(tables)} tables ({', '.join(tables)})", allowed)
        parts = self._named("sink", "sinks", allowed)
        return {name: ConfiguredSink.of(part.type, part.options) for name, part in parts.items()}

    def _model(self) -> ConfiguredPart | None:
        if "model" not in self._tables:
            self._draft.problem("model", "nothing", "a table [model] (required)")
            return None
        table = self._table("model", self._tables["model"])
        return None if table is None else self._part("model", "models", table)

    def _steps(self) -> tuple[ConfiguredPart, ...]:
        tables = self._tables.get("preprocess", [])
        if not isinstance(tables, list):
            self._draft.problem(
                "preprocess", self._draft.shown("preprocess", toml_text(tables)), "tables [[preprocess]]"
            )
            return ()
        parts = []
        for at, value in enumerate(tables):
            table = self._table(f"preprocess[{at}]", value)
            parts.append(None if table is None else self._part(f"preprocess[{at}]", "steps", table))
        return tuple(part for part in parts if part is not None)

    def _part(
        self, key: str, group: Group, table: Mapping[str, Any], *, name: str | None = None
    ) -> ConfiguredPart | None:
        """Return the part that `type` names, with its other keys as options."""
        kind = table.get("type")
        if kind is not None and not isinstance(kind, str):
            self._draft.problem(f"{key}.type", self._draft.shown(f"{key}.type", toml_text(kind)), "a string")
            return None
        try:
            cls = self._find(group, kind)
        except OptionError as error:
            self._draft.problem(f"{key}.type", str(error.found), error.allowed, error.meant)
            return None
        rest = {option: value for option, value in table.items() if option != "type"}
        built = self._build(key, cls, rest, name=name)
        return None if built is None else ConfiguredPart(type=str(kind), options=built)

    def _build(self, key: str, cls: Callable[..., T], table: Mapping[str, Any], *, name: str | None = None) -> T | None:
        """Return the options that a table holds, or None after noting every wrong or unknown key."""
        # A part's name is the last word of its table's header, and no key in the table.
        known = [option.name for option in option_fields(cls) if option.name != "name"]
        before = len(self._draft.problems)
        self._check_keys(key, table, known)
        given = {option: value for option, value in table.items() if option in known}
        try:
            built = cls(**given) if name is None else cls(**given, name=name)
        except ConfigError as error:
            for problem in _innermost(error.problems):
                self._blame(key, problem.key, problem.found, problem.allowed)
            return None
        except OptionError as error:
            self._blame(key, error.option, str(error.found), error.allowed)
            return None
        # pydantic takes true for the number 1, which in a config is a mistake.
        for option, value in given.items():
            if isinstance(value, bool) and not isinstance(getattr(built, option), bool):
                self._blame(key, option, str(value).lower(), "a number")
        return built if len(self._draft.problems) == before else None

    def _blame(self, key: str, option: str, found: str, allowed: str) -> None:
        # Pydantic names an item of a list `path.0`, a config `path[0]`.
        full = _INDEX.sub(r"[\1]", f"{key}.{option}") if option else key
        self._draft.problem(full, self._draft.shown(full, found), allowed)

    def _check_keys(self, key: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
        choices = list(known)
        for option in table:
            if option not in choices:
                full = f"{key}.{option}".lstrip(".")
                found = self._draft.shown(full, toml_text(table[option]))
                self._draft.problem(full, f"an unknown key ({found})", ", ".join(choices), closest(option, choices))

    def _table(self, key: str, value: object) -> dict[str, Any] | None:
        if isinstance(value, dict):
            return value
        self._draft.problem(key, self._draft.shown(key, toml_text(value)), "a table")
        return None

    def _anchored(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """Return the table with its paths relative to the config file's folder."""
        anchored: dict[str, Any] = {key: self._anchor(table[key]) for key in PATHS if isinstance(table.get(key), str)}
        paths = table.get("path")
        if isinstance(paths, list):
            anchored["path"] = [self._anchor(one) if isinstance(one, str) else one for one in paths]
        return {**table, **anchored}

    def _anchor(self, path: str) -> str:
        # The folder is no pattern, even if its name holds a bracket.
        base = Path(glob.escape(str(self._base))) if glob.has_magic(path) else self._base
        return str(base / path) if path else path


def _innermost(problems: Sequence[ConfigProblem]) -> list[ConfigProblem]:
    """Return the problems without those of a list as a whole where one of its items has a problem of its own."""
    keys = [problem.key for problem in problems]
    return [problem for problem in problems if not any(key.startswith(f"{problem.key}.") for key in keys)]


def option_fields(cls: Any) -> list[Any]:
    """Return the dataclass fields of an options class that a config may set."""
    return [option for option in fields(cls) if option.init]


def closest(word: str, choices: Iterable[str]) -> str:
    """Return the choice that a misspelt word most likely meant; empty if none is close."""
    return next(iter(get_close_matches(word, list(choices), n=1)), "")
