"""Replays dead letters: sends the records that died through the pipeline once more, after what they died of was mended.

What was chosen is first made durable, in a file beside the dead letters; then a run of the same pipeline reads that
file, with the same state and outputs. So each is scored once, or dies once more, also when the process is killed in the
middle: the next replay begins with what is left. The pipeline itself must not run meanwhile.
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
from streambatch.config.sections import ConfiguredPart
from streambatch.connectors.files.notes import FileNotes
from streambatch.connectors.files.source import FileSource
from streambatch.core.errors import StateError
from streambatch.core.report import RunReport
from streambatch.delivery.dead_letters import DeadLetter
from streambatch.durability.store.database import FILE_NAME
from streambatch.durability.store.store import StateStore
from streambatch.ops.letters import Key, Letters, key_of, layout_of, record_of
from streambatch.ops.replaying import SUFFIX, Chosen, chosen_path, read_chosen, replay_sources, replayed_to
from streambatch.ops.rereading import Files, columns_in
from streambatch.pipeline.pipeline import Pipeline
from streambatch.storage.files import sync_folder
from streambatch.storage.folder import StateFolder

Origin = tuple[str, str, int]
"""Source, partition and position where a record was read first."""


class Filter(NamedTuple):
    """Which dead letters; what is None is not asked for."""

    stage: str | None = None
    reason: str | None = None
    source: str | None = None
    run: str | None = None

    def takes(self, letter: DeadLetter) -> bool:
        """Tell whether a dead letter is one of them."""
        return (
            self.stage in (None, letter.stage)
            and self.reason in (None, letter.reason)
            and self.source in (None, letter.source, letter.source.removesuffix(SUFFIX))
            and self.run in (None, letter.run)
        )


class Replay(msgspec.Struct, kw_only=True):
    """What a replay did. pending: what one before had left. left_out: what can't be replayed, by why."""

    chosen: int = 0
    pending: int = 0
    left_out: dict[str, int] = {}
    report: RunReport | None = None

    def leave_out(self, why: str) -> None:
        self.left_out[why] = self.left_out.get(why, 0) + 1


class Known(NamedTuple):
    """What was chosen before. done: what of it was replayed. origins: where a record was read first, by its replay."""

    chosen: set[Key]
    done: set[Key]
    origins: dict[tuple[str, int], Origin]
    pending: int


def known_replays(config: Config) -> Known:
    """Return what was chosen so far, and what became of it."""
    known = Known(set(), set(), {}, 0)
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
    """Yield a config's dead letters, as far as they are committed. Raises OutputError."""
    mark = None
    if (config.state_dir / FILE_NAME).exists():
        with StateStore.read(config.state_dir) as store:
            mark = store.load().outputs.get("dead_letters")
    yield from Letters(layout_of(config), None, mark, mark)


def replay(config: Config, wanted: Filter) -> Replay:
    """Replay the dead letters that are wanted and were not replayed yet, after those that a killed replay left.

    Raises HeldError while the pipeline runs, StateError while batches wait that were sent and not acked, and whatever
    ends a run.
    """
    result = Replay()
    with StateFolder(config.state_dir) as folder:
        _check_settled(config)
        _mend(chosen_path(config))
        known = known_replays(config)
        chosen = _choose(config, wanted, known, result)
        if chosen:
            _append(chosen_path(config), chosen)
        result.chosen, result.pending = len(chosen), known.pending
        if chosen or known.pending:
            result.report = anyio.run(_run, _replaying(config), folder)
    return result


def _check_settled(config: Config) -> None:
    if not (config.state_dir / FILE_NAME).exists():
        return
    with StateStore.read(config.state_dir) as store:
        if store.intended():
            raise StateError(
                store.path, "batches were sent whose answer did not come; run the pipeline first, which settles them"
            )


def _choose(config: Config, wanted: Filter, known: Known, result: Replay) -> list[Chosen]:
    """Return what is to be replayed; of a record that died several times the last."""
    sources: dict[str, Any] = {part.options.name: part.options for part in config.sources}
    headers = _Headers(sources)
    chosen: dict[Origin, list[Chosen]] = {}
    for letter in dead_letters(config):
        if not wanted.takes(letter) or key_of(letter) in known.chosen:
            continue
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
            record = _framed(record_of(letter), source.format)
            key = key_of(letter)
            chosen.setdefault(origin, []).append(Chosen(**key._asdict(), origin=origin, record=record, columns=columns))
    return [one for several in chosen.values() for one in _only_last(several)]


def _only_last(several: list[Chosen]) -> Iterator[Chosen]:
    """Yield all, of which only the last has its record: the others are the same one, and only marked."""
    yield from (msgspec.structs.replace(one, record=b"") for one in several[:-1])
    yield several[-1]


class _Headers:
    """The headers of files of CSV."""

    def __init__(self, sources: dict[str, Any]) -> None:
        self._sources = sources
        self._files: dict[str, Files] = {}
        self._found: dict[tuple[str, str], tuple[str, ...] | None] = {}

    def find(self, origin: Origin) -> tuple[str, ...] | None:
        """Return the columns of a partition; None if it is no file that is there."""
        name, partition, _ = origin
        if (name, partition) not in self._found:
            self._found[name, partition] = self._read(name, partition)
        return self._found[name, partition]

    def _read(self, name: str, partition: str) -> tuple[str, ...] | None:
        source = self._sources[name]
        if not isinstance(source, FileSource):
            return None
        files = self._files.setdefault(name, Files(source))
        file = files.find(FileNotes(path=partition))
        return columns_in(source, file) if file is not None else None


def _framed(record: bytes, format: str) -> bytes:
    if format == "length_prefixed":
        return len(record).to_bytes(4, "big") + record
    return record + b"\n"


def _mend(path: Path) -> None:
    """Cut off a last line that was being written when the process was killed."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        whole = 0
        for line in file:
            whole += len(line) if line.endswith(b"\n") else 0
        file.truncate(whole)
        os.fsync(file.fileno())


def _append(path: Path, chosen: list[Chosen]) -> None:
    with path.open("ab") as file:
        file.write(msgspec.json.Encoder().encode_lines(chosen))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _replaying(config: Config) -> Config:
    """Return the config with replays in place of its sources."""
    parts = (ConfiguredPart(type="replay", options=source) for source in replay_sources(config))
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
