"""The run manifest: what a run was made of, what it read and wrote, how it ended. Nothing in it names a machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from streambatch.core.checkpoints import resolved_early
from streambatch.core.clock import rfc3339
from streambatch.core.report import Counts, total_of
from streambatch.durability.stored import RunChange, RunEnd, RunEnding, RunStart
from streambatch.version import __version__

CHANGES_MAX = 500
"""Changes of one run that its manifest remembers: it is stored whole with every checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a pipeline comes from, for the manifest of its runs.

    config: effective, with secrets redacted. model: `path`, `format`, `sha256`, `parameters`. sink: such as `path` and
    `format`.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    config_digest: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    sink: Mapping[str, Any] = field(default_factory=dict)


class RunProgress(msgspec.Struct):
    """What the store keeps of a run as it goes on; its fields are the row's columns, in order."""

    number: int
    checkpoints: int
    at: float
    journal_from: int
    """Id of its first row in the journal."""
    journal_to: int
    """Id of its last row in the journal; less than `journal_from` if it has none."""
    reads: int
    """How many partitions it read."""
    reads_seal: bytes
    """The sum of the seals of their rows."""
    detail: str
    """A RunDetail, as JSON."""
    ended: str | None
    """A RunEnd, as JSON; None while the run goes on, or if it was killed."""


@resolved_early
class RunDetail(msgspec.Struct):
    """What a run has counted, written and changed."""

    counts: dict[str, Counts] = {}
    """By source."""
    outputs_from: dict[str, Mapping[str, Any]] = {}
    """The outputs' marks as it found them."""
    outputs_to: dict[str, Mapping[str, Any]] = {}
    """The outputs' marks by its last checkpoint."""
    changes: list[RunChange] = []
    """What was changed while it went on, in the order of batches; of very many, the last ones."""
    changes_forgotten: int = 0
    """How many changes came before those."""

    def add_changes(self, changes: Sequence[RunChange]) -> None:
        """Add changes that came after those known."""
        self.changes.extend(changes)
        # The oldest go, and are counted: the row is written with every checkpoint and must not grow without end.
        beyond = max(0, len(self.changes) - CHANGES_MAX)
        del self.changes[:beyond]
        self.changes_forgotten += beyond


class PartitionRead(msgspec.Struct, frozen=True):
    """What a run has read of one partition; its fields are the row's columns, in order. notes: JSON."""

    number: int
    source: str
    name: str
    first: int
    last: int
    records: int
    digest: str | None
    notes: str


def describe_run(
    *,
    run: str,
    pipeline: str,
    started: float,
    config: Mapping[str, Any],
    config_digest: str | None,
    model: Mapping[str, Any],
    sinks: Mapping[str, Mapping[str, Any]],
    readings: Mapping[str, Mapping[str, Any]],
) -> RunStart:
    """Return what is known of a run as it begins, with the code that runs it.

    started: wall seconds. config: with secrets redacted. model: `path`, `format`, `sha256`, `parameters`. sinks: such
    as `path` and `format`, by the name of the output's mark. readings: by source, the options positions depend on.
    """
    return RunStart(
        run=run,
        pipeline=pipeline,
        started=started,
        pid=os.getpid(),
        version=__version__,
        revision=code_revision(),
        python=platform.python_version(),
        numpy=np.__version__,
        config=config,
        config_digest=config_digest,
        model=model,
        sinks=sinks,
        readings=readings,
    )


def code_revision() -> str | None:
    """Return the git commit of the code that runs, as far as its installation or its checkout says."""
    package = Path(__file__).parents[1]
    return _installed_revision() or _checked_out_revision(package.parent / ".git")


def build_manifest(
    begun: RunStart, progress: RunProgress, why: RunEnding, reads: Iterable[PartitionRead]
) -> dict[str, Any]:
    """Return the manifest as plain data. Times are RFC 3339."""
    detail, ended = detail_of(progress), end_of(progress)
    sources: dict[str, Any] = {
        name: {"counts": counts.as_records(), "partitions": []} for name, counts in detail.counts.items()
    }
    for read in reads:
        known = sources.setdefault(read.source, {"counts": Counts().as_records(), "partitions": []})
        known["partitions"].append(_partition(read))
    return {
        "run": begun.run,
        "pipeline": begun.pipeline,
        "started": rfc3339(begun.started),
        "ended": rfc3339(ended.at) if ended else None,
        "why": why,
        "error": ended.error if ended else None,
        "streambatch": {"version": begun.version, "revision": begun.revision},
        "python": begun.python,
        "numpy": begun.numpy,
        "config": begun.config,
        "config_digest": begun.config_digest,
        "model": begun.model,
        "changes": [_change(change) for change in detail.changes],
        "changes_forgotten": detail.changes_forgotten,
        "sources": sources,
        "sinks": {name: _sink(name, begun, detail) for name in {**begun.sinks, **detail.outputs_to}},
        "counts": total_of(detail.counts.values()).as_records(),
        "checkpoints": progress.checkpoints,
        "last_checkpoint": rfc3339(progress.at) if progress.checkpoints else None,
        "report": ended.report if ended else None,
    }


def detail_of(progress: RunProgress) -> RunDetail:
    """Return the counts and marks of a run."""
    return msgspec.convert(from_json(progress.detail), RunDetail)


def end_of(progress: RunProgress) -> RunEnd | None:
    """Return how a run ended; None if it goes on or was killed."""
    return None if progress.ended is None else msgspec.convert(from_json(progress.ended), RunEnd)


def as_json(value: Any) -> str:
    """Return a text in ASCII: names of files in it may hold any bytes."""
    return json.dumps(msgspec.to_builtins(value, builtin_types=(bytes,)), separators=(",", ":"))


def from_json(text: str) -> Any:
    """Return what `as_json` was given, as plain data."""
    return json.loads(text)


def _change(change: RunChange) -> dict[str, Any]:
    """Return a change: `batch` is the number, in the journal, of the first batch made with it; `config` has the
    sections that differ from before, whole."""
    return {
        "at": rfc3339(change.at),
        "batch": change.batch,
        "config": change.config,
        "config_digest": change.config_digest,
        "model": change.model,
    }


def _partition(read: PartitionRead) -> dict[str, Any]:
    return {
        "partition": read.name,
        "identity": from_json(read.notes),
        "first": read.first,
        "last": read.last,
        "records": read.records,
        "sha256": read.digest,
    }


def _sink(name: str, begun: RunStart, detail: RunDetail) -> dict[str, Any]:
    known = begun.sinks.get(name, {})
    return {**known, "from": detail.outputs_from.get(name), "to": detail.outputs_to.get(name)}


def _installed_revision() -> str | None:
    """Return the commit that pip noted when it installed from a repository."""
    try:
        noted = importlib.metadata.distribution("streambatch").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    revision = json.loads(noted or "{}").get("vcs_info", {}).get("commit_id")
    return str(revision) if revision else None


def _checked_out_revision(git: Path) -> str | None:
    """Return the commit that a checkout is at, as far as its files say so in plain."""
    try:
        if git.is_file():  # a worktree's own folder is elsewhere
            git = (git.parent / git.read_text().removeprefix("gitdir:").strip()).resolve()
        # HEAD holds a commit, or names a branch, whose commit is in a file of its own or among the packed ones.
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head or None
        reference = head.removeprefix("ref:").strip()
        shared = git / "commondir"
        common = git / shared.read_text().strip() if shared.exists() else git
        loose = common / reference
        if loose.exists():
            return loose.read_text().strip() or None
        packed = (common / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {reference}")), None)
    except (OSError, UnicodeDecodeError):
        return None
