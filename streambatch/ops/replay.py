"""Replay dead letters: send the records that died through the pipeline again, after the cause was fixed.

The chosen records are first made durable, in a file beside the dead letters. Then a run of the same pipeline reads that
file, with the same state and outputs. So each record is scored once or dies once more, even if the process is killed:
the next replay begins with what is left. The pipeline itself must not run meanwhile.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import msgspec

from streambatch.config.assemble import Assembly
from streambatch.config.config import Config
from streambatch.config.sections import ConfiguredSource
from streambatch.core.archive import Archive
from streambatch.core.errors import StateError
from streambatch.core.report import RunReport
from streambatch.delivery.dead_letters import DeadLetter
from streambatch.durability.store.database import FILE_NAME
from streambatch.durability.store.store import StateStore
from streambatch.ops.dead_letters import DeadLetterKey, DeadLetterReader, dead_letter_key, dead_letter_layout, record_of
from streambatch.ops.replay_source import SUFFIX, ChosenRecord, chosen_path, read_chosen, replay_sources, replayed_to
from streambatch.pipeline.pipeline import Pipeline
from streambatch.storage.files import sync_folder
from streambatch.storage.folder import StateFolder

RecordOrigin = tuple[str, str, int]
"""Source, partition and position at which a record was first read."""


class DeadLetterFilter(NamedTuple):
    """Which dead letters to take; a field that is None takes all."""

    stage: str | None = None
    reason: str | None = None
    source: str | None = None
    run: str | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Whether a dead letter is to be taken."""
        return (
            self.stage in (None, letter.stage)
            and self.reason in (None, letter.reason)
            and self.source in (None, letter.source, letter.source.removesuffix(SUFFIX))
            and self.run in (None, letter.run)
        )


class ReplayResult(msgspec.Struct, kw_only=True):
    """What a replay did."""

    chosen: int = 0
    pending: int = 0
    """Records that an earlier replay had left."""
    left_out: dict[str, int] = {}
    """Records that can't be replayed, by reason."""
    report: RunReport | None = None

    def leave_out(self, why: str) -> None:
        self.left_out[why] = self.left_out.get(why, 0) + 1


class ReplayHistory(NamedTuple):
    """What earlier replays chose, and how far they came."""

    chosen: set[DeadLetterKey]
    done: set[DeadLetterKey]
    origins: dict[tuple[str, int], RecordOrigin]
    """Where a replayed record was first read, by the source and position of its replay."""
    pending: int


def replay_history(config: Config) -> ReplayHistory:
    """Return what earlier replays of this config chose, and what of it was replayed."""
    known = ReplayHistory(set(), set(), {}, 0)
    state = config.state_dir / FILE_NAME
    if not chosen_path(config).exists() or not state.exists():
        return known
    with StateStore.read(config.state_dir) as store:
        replayed = replayed_to(config, store.load().partitions)
    pending = 0
    for place, chosen in read_chosen(chosen_path(config)):
        known.chosen.add(chosen.key)
        known.origins[f"{chosen.origin[0]}{SUFFIX}", place] = chosen.origin
        if place <= replayed.get(chosen.origin[0], 0):
            known.done.add(chosen.key)
        else:
            pending += 1
    return known._replace(pending=pending)


def dead_letters(config: Config) -> Iterator[DeadLetter]:
    """Yield a config's committed dead letters. Raises OutputError."""
    mark = None
    if (config.state_dir / FILE_NAME).exists():
        with StateStore.read(config.state_dir) as store:
            mark = store.load().outputs.get("dead_letters")
    yield from DeadLetterReader(dead_letter_layout(config), None, mark, mark)


def replay(config: Config, wanted: DeadLetterFilter) -> ReplayResult:
    """Replay the matching dead letters that were not replayed yet, after those that a killed replay left.

    Raises HeldError while the pipeline runs, StateError while batches were sent to a sink and not acked, and every
    error that ends a run.
    """
    result = ReplayResult()
    with StateFolder(config.state_dir) as folder:
        # Held from here on: no pipeline can start between the choice of records and their run.
        _check_settled(config)
        _cut_torn_line(chosen_path(config))
        known = replay_history(config)
        chosen = _choose(config, wanted, known, result)
        if chosen:
            _append(chosen_path(config), chosen)
        result.chosen, result.pending = len(chosen), known.pending
        if chosen or known.pending:
            result.report = anyio.run(_run, _replaying_config(config), folder)
    return result


def _check_settled(config: Config) -> None:
    if not (config.state_dir / FILE_NAME).exists():
        return
    with StateStore.read(config.state_dir) as store:
        # Such batches must be sent again exactly as they were, before any other.
        if store.intended():
            raise StateError(
                store.path, "batches were sent whose answer did not come; run the pipeline first, which settles them"
            )


def _choose(config: Config, wanted: DeadLetterFilter, known: ReplayHistory, result: ReplayResult) -> list[ChosenRecord]:
    """Return the records to replay; of a record that died several times, its last dead letter."""
    sources: dict[str, Any] = {part.source.name: part.source for part in config.sources}
    headers = _CsvHeaders(sources)
    chosen: dict[RecordOrigin, list[ChosenRecord]] = {}
    for letter in dead_letters(config):
        # A letter chosen once is never chosen again: the file of chosen records is its mark.
        if not wanted.matches(letter) or dead_letter_key(letter) in known.chosen:
            continue
        # A record that died in a replay is traced back to where it was first read, so that its id stays the same.
        origin = known.origins.get((letter.source, letter.position))
        origin = origin or (letter.source, letter.partition, letter.position)
        source = sources.get(origin[0])
        columns = headers.find(origin) if source is not None and source.format == "csv" else None
        if letter.truncated:
            result.leave_out("only the beginning of the record was kept")
        elif source is None:
            result.leave_out(f"the config has no source {origin[0]}")
        elif source.format == "csv" and columns is None:
            result.leave_out("the header of its CSV is no longer there")
        else:
            # The reader frames the records again, so that the framing that was removed is put back.
            record = _framed(record_of(letter), source.format)
            key = dead_letter_key(letter)
            chosen.setdefault(origin, []).append(
                ChosenRecord(**key._asdict(), origin=origin, record=record, columns=columns)
            )
    return [one for several in chosen.values() for one in _last_with_record(several)]


def _last_with_record(several: list[ChosenRecord]) -> Iterator[ChosenRecord]:
    """Yield all of them, the record kept in the last one only: the others are marked as replayed with it."""
    yield from (msgspec.structs.replace(one, record=b"") for one in several[:-1])
    yield several[-1]


class _CsvHeaders:
    """The headers of the CSV files that records came from, each read once."""

    def __init__(self, sources: dict[str, Any]) -> None:
        self._sources = sources
        self._archives: dict[str, Archive | None] = {}
        self._found: dict[tuple[str, str], tuple[str, ...] | None] = {}

    def find(self, origin: RecordOrigin) -> tuple[str, ...] | None:
        """Return the columns of a partition; None if its file is not there or it is no file."""
        name, partition, _ = origin
        if (name, partition) not in self._found:
            self._found[name, partition] = self._read(name, partition)
        return self._found[name, partition]

    def _read(self, name: str, partition: str) -> tuple[str, ...] | None:
        if name not in self._archives:
            self._archives[name] = self._sources[name].archive()
        archive = self._archives[name]
        found = archive.find(partition, {}) if archive is not None else None
        return found.columns() if found is not None else None


def _framed(record: bytes, format: str) -> bytes:
    if format == "length_prefixed":
        return len(record).to_bytes(4, "big") + record
    return record + b"\n"


def _cut_torn_line(path: Path) -> None:
    """Cut off the last line of the file if a kill left it half written."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        whole = 0
        for line in file:
            whole += len(line) if line.endswith(b"\n") else 0
        file.truncate(whole)
        os.fsync(file.fileno())


def _append(path: Path, chosen: list[ChosenRecord]) -> None:
    with path.open("ab") as file:
        file.write(msgspec.json.Encoder().encode_lines(chosen))
        file.flush()
        os.fsync(file.fileno())
    # The file may be new: its name must be durable before the run that reads it.
    sync_folder(path.parent)


def _replaying_config(config: Config) -> Config:
    """Return the config with replays in place of its sources, and without a limit on how many may die."""
    parts = (ConfiguredSource.of("replay", source) for source in replay_sources(config))
    return replace(config, sources=tuple(parts), dead_letter=replace(config.dead_letter, stop_at=1.0))


async def _run(config: Config, folder: StateFolder) -> RunReport:
    pipeline = Assembly(config).pipeline(folder=folder)
    async with anyio.create_task_group() as along:
        along.start_soon(_stop_on_signal, pipeline)
        report = await pipeline.run()
        along.cancel_scope.cancel()
    return report


async def _stop_on_signal(pipeline: Pipeline) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            pipeline.stop()
