"""Verify a past run: read its input again, score it in the journal's batches, compare the output bit for bit.

The recorded config is used, and the model that is there now. Nothing is changed and no lock is held: a pipeline may run
meanwhile. Input or output that no longer exists is noted and is no difference, since sockets keep no records and
readers may take closed segments away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from streambatch.config.assemble import Assembly
from streambatch.config.config import Config, restore_config
from streambatch.config.plugins import find_part
from streambatch.core.archive import Archive
from streambatch.core.batches import Batch, Stamps
from streambatch.core.chunks import Chunk
from streambatch.core.errors import ConfigError, StreambatchError
from streambatch.core.outcomes import Outcome
from streambatch.core.parts import Source
from streambatch.durability.store.reader import StateReader
from streambatch.durability.stored import JournalEntry
from streambatch.ops.comparison import WrittenDeadLetters, WrittenScores, dead_letter_differences, score_differences
from streambatch.ops.dead_letters import DeadLetterReader, dead_letter_layout
from streambatch.ops.differences import Difference, What, code_differences, config_differences
from streambatch.ops.outputs import OutputError, OutputSegments
from streambatch.ops.replay_source import replay_sources
from streambatch.ops.rereading import PartitionReader
from streambatch.scoring.factory import encoder_for, transform_for
from streambatch.scoring.transform import Transform

DIFFERENCES_KEPT = 100
"""Differences of one kind that are listed; the rest is counted."""
CAUSES_FIRST: tuple[What, ...] = ("config", "model", "input", "output", "batch", "score", "dead_letter")
"""The order in which differences are listed: a different model explains different scores."""


class VerifiedInput(msgspec.Struct, kw_only=True):
    """A partition as the run read it, and as it is now.

    status: `gone` if it can't be read again. recorded, found: digests. path: where its file is now.
    """

    source: str
    partition: str
    first: int
    last: int
    status: Literal["same", "changed", "gone", "unknown"]
    recorded: str | None
    found: str | None = None
    path: str | None = None


class Verification(msgspec.Struct, kw_only=True):
    """The result of verifying a run. counts: batches and records by outcome. totals: differences by kind."""

    run: str
    verdict: Literal["agrees", "differs"] = "agrees"
    counts: dict[str, int] = {}
    inputs: list[VerifiedInput] = []
    code: dict[str, tuple[Any, Any]] = {}
    totals: dict[str, int] = {}
    differences: list[Difference] = []
    notes: list[str] = []

    def differ(self, differences: Sequence[Difference]) -> None:
        """Add differences."""
        for each in differences:
            total = self.totals[each.what] = self.totals.get(each.what, 0) + 1
            if total <= DIFFERENCES_KEPT:
                self.differences.append(each)
            self.verdict = "differs"

    def count(self, name: str, number: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + number


async def verify_run(config: Config, reader: StateReader, run: str) -> Verification:
    """Verify a run against the state. config: the current one.

    Raises StateError for a run that is not kept.
    """
    manifest = reader.manifest(run)
    result = Verification(run=run, code=code_differences(manifest))
    recorded = _recorded_config(config, manifest, result)
    assembly = _assembled(recorded, manifest, result)
    inputs = _RecordedInputs(recorded, manifest, result)
    # Without steps and model nothing can be scored, but the inputs' digests are compared all the same.
    if assembly is not None:
        await _Scoring(recorded, reader, manifest, inputs, result).run(_transform(recorded, assembly))
    inputs.finish()
    result.differences.sort(key=lambda each: CAUSES_FIRST.index(each.what))
    # If config, model or input differ, that is the cause; else the code may be.
    if result.verdict == "differs" and result.code and set(result.totals) <= {"score", "dead_letter", "batch"}:
        result.notes.append("the code is another one now, which may be why")
    return result


class _RecordedInputs:
    """The partitions that a run read, opened to be read again."""

    def __init__(self, config: Config, manifest: Mapping[str, Any], result: Verification) -> None:
        self._result = result
        self._open: dict[tuple[str, str], tuple[PartitionReader, VerifiedInput]] = {}
        self._lost: set[tuple[str, str]] = set()
        self._unkept: set[str] = set()
        sources = [part.source for part in config.sources]
        self._sources: dict[str, Source] = {source.name: source for source in [*sources, *replay_sources(config)]}
        archives: dict[str, Archive | None] = {}
        for name, known in manifest["sources"].items():
            for read in known["partitions"]:
                self._open_partition(name, read, archives)

    def take(self, entry: JournalEntry) -> list[Chunk] | None:
        """Return the records of a batch; None if some of them can't be read again."""
        readings = [self._open.get((each.source, each.partition)) for each in entry.ranges]
        chunks: list[Chunk] = []
        # Readable partitions are read even if another one of the batch is lost: the next batch begins after them.
        for each, opened in zip(entry.ranges, readings, strict=True):
            if opened is not None:
                chunks += opened[0].take(each.start, each.end)
        # A partition that was found and is lost is noted already: only sources that keep no records are noted here.
        if None in readings:
            lost = (each for each, opened in zip(entry.ranges, readings, strict=True) if opened is None)
            self._unkept |= {each.source for each in lost if (each.source, each.partition) not in self._lost}
            return None
        found, wanted = sum(chunk.count for chunk in chunks), sum(each.records for each in entry.ranges)
        if found != wanted:
            where = ", ".join(sorted({str(opened[1].path) for opened in readings if opened is not None}))
            difference = Difference(
                what="batch", where=where, recorded=f"{wanted} records", found=f"{found} records", batch=entry.batch
            )
            self._result.differ([difference])
        return chunks

    def finish(self) -> None:
        """Read the rest of each partition, and compare the digests."""
        for name in sorted(self._unkept):
            self._result.notes.append(f"source {name} keeps no records: batches with some of it can't be scored again")
        for reading, known in self._open.values():
            reading.finish(known.last)
            if reading.problem is not None:
                self._result.notes.append(f"{known.path} can't be read to the end: {reading.problem}")
            known.found = reading.digest
            if known.recorded is None:
                self._result.notes.append(
                    f"{known.source} {known.partition}: its digest was not stored, as after a kill"
                )
                known.status = "unknown"
            elif known.found != known.recorded:
                known.status = "changed"
                self._result.differ([_changed(known)])

    def _open_partition(self, name: str, read: Mapping[str, Any], archives: dict[str, Archive | None]) -> None:
        known = VerifiedInput(
            source=name, partition=read["partition"], first=read["first"], last=read["last"], status="same",
            recorded=read["sha256"],
        )  # fmt: skip
        self._result.inputs.append(known)
        source = self._sources.get(name)
        if name not in archives:
            archives[name] = source.archive() if source is not None else None
        archive = archives[name]
        if archive is None:
            self._lose(known, "its records are no longer there" if source else "the config has no such source")
            return
        found = archive.find(known.partition, read["identity"])
        if found is None:
            self._lose(known, "it is there no longer")
            return
        known.path = found.location
        self._open[name, known.partition] = (PartitionReader(found.chunks(known.first, known.last)), known)

    def _lose(self, known: VerifiedInput, why: str) -> None:
        known.status = "gone"
        self._lost.add((known.source, known.partition))
        self._result.notes.append(f"{known.source} {known.partition}: {why}, so that it can't be read again")


class _Scoring:
    """Scores the batches of a run again and compares them with what was written."""

    def __init__(
        self,
        config: Config,
        reader: StateReader,
        manifest: Mapping[str, Any],
        inputs: _RecordedInputs,
        result: Verification,
    ) -> None:
        self._reader, self._run, self._inputs, self._result = reader, manifest["run"], inputs, result
        sink, marks = config.sink.sink, manifest["sinks"]
        outputs = reader.load().outputs
        self._format = sink.format
        self._is_whole = _is_journal_whole(reader, manifest)
        self._written: WrittenScores | None = None
        if (layout := sink.files()) is not None:
            segments = OutputSegments(layout, outputs.get("sink"))
            self._written = WrittenScores(segments, marks.get("sink", {}).get("from"), is_whole=self._is_whole)
        else:
            result.notes.append(
                f"sink {sink.name} keeps no scores to compare with: counts and dead letters are compared"
            )
        sent = marks.get("dead_letters", {})
        letters = DeadLetterReader(
            dead_letter_layout(config), sent.get("from"), sent.get("to"), outputs.get("dead_letters")
        )
        self._dead_letters: WrittenDeadLetters | None = (
            WrittenDeadLetters(letters, self._run) if self._is_whole else None
        )
        self._is_lost = False

    async def run(self, transform: Transform) -> None:
        """Score and compare all batches of the journal."""
        transform.restore(self._reader.steps_from(self._run))
        # The state before the first journalled batch is not known, so steps with memory would start wrongly.
        if not self._is_whole:
            self._result.notes.append("the beginning of its journal was forgotten, see [runs] keep")
            self._is_lost = transform.is_ordered
        for at, entry in enumerate(self._reader.journal(self._run)):
            chunks, written, letters = (
                self._inputs.take(entry),
                self._take_scores(entry),
                self._take_dead_letters(entry),
            )
            self._result.count("batches")
            self._is_lost |= chunks is None and transform.is_ordered
            if chunks is None or self._is_lost:
                self._result.count("batches_skipped")
                continue
            await self._compare(transform, entry, _batch(at, chunks), written, letters)
        self._finish()

    async def _compare(
        self, transform: Transform, entry: JournalEntry, batch: Batch, written: Any, letters: Any
    ) -> None:
        # Without a record there is nothing to score; an empty outcome is compared with the journal's entry.
        outcome = await _scored(transform, batch) if batch.count else Outcome(b"", {}, [], {})
        self._result.count("records", batch.count)
        # The journal counts a record that the sink refused as dead. Scored again, it has a score.
        refused = sum(letter.stage == "sink" for letter in letters or ())
        expected = msgspec.structs.replace(entry, scored=entry.scored + refused) if refused else entry
        differences: list[Difference] = []
        try:
            differences += score_differences(expected, batch, outcome, written, self._format)
        except OutputError as error:
            differences.append(_output_difference(entry, error))
        if letters is not None:
            differences += dead_letter_differences(entry, outcome.rejects, letters)
        self._result.differ(differences)
        self._result.count("batches_different" if differences else "batches_same")

    def _take_scores(self, entry: JournalEntry) -> Any:
        if self._written is None:
            return None
        try:
            return self._written.take(entry)
        except OutputError as error:
            self._result.differ([_output_difference(entry, error)])
            self._written = None
            return None

    def _take_dead_letters(self, entry: JournalEntry) -> Any:
        if self._dead_letters is None or self._dead_letters.letters.missing:
            return None
        try:
            letters = self._dead_letters.take(entry.dead)
        except OutputError as error:
            self._result.differ([_output_difference(entry, error, "dead_letter")])
            self._dead_letters = None
            return None
        return None if self._dead_letters.letters.missing else letters

    def _finish(self) -> None:
        if self._written is not None:
            self._written.finish()
            self._result.count("scores_compared", self._written.compared)
            for lost in self._written.missing:
                self._lost_output(lost)
        for path in self._dead_letters.letters.missing if self._dead_letters is not None else ():
            self._result.notes.append(f"{path} is there no longer: dead letters are compared up to there")
        if self._is_lost:
            self._result.notes.append(
                "a step with memory needs all records before a batch: none was scored from where they are missing"
            )

    def _lost_output(self, path: str) -> None:
        """Record that a file of the output is missing. A closed segment may be: its reader may take it away."""
        assert self._written is not None
        if self._written.is_rotated:
            self._result.notes.append(f"{path} is there no longer: its scores can't be compared")
        else:
            self._result.differ([Difference(what="output", where=path, recorded="scores", found="no file")])


def _recorded_config(config: Config, manifest: Mapping[str, Any], result: Verification) -> Config:
    """Return the config of the run, or the current one if its parts can't be built any more."""
    if manifest["config_digest"] == config.digest:
        return config
    try:
        recorded = restore_config(config.path, manifest["config"], find_part)
    except ConfigError as error:
        result.differ(config_differences(manifest["config"], config.effective))
        result.notes.append(f"the recorded config can't be used any more, the one that is there is: {error}")
        return config
    # An option that the recorded version did not have yet gets its default on both sides.
    result.differ(config_differences(recorded.effective, config.effective) if recorded.digest != config.digest else [])
    return recorded


def _assembled(config: Config, manifest: Mapping[str, Any], result: Verification) -> Assembly | None:
    """Return steps and model, and record whether the model is the recorded one."""
    recorded, where = manifest["model"].get("sha256"), str(manifest["model"].get("path"))
    try:
        assembly = Assembly(config)
    except StreambatchError as error:
        result.differ([Difference(what="model", where=where, recorded=recorded, found=str(error))])
        return None
    found = assembly.model.digest
    if recorded != found:
        result.differ([Difference(what="model", where=where, recorded=recorded, found=found)])
    elif recorded is None:
        result.notes.append("the model has no digest: whether it is the same can't be told")
    return assembly


def _transform(config: Config, assembly: Assembly) -> Transform:
    sources = [*(part.source for part in config.sources), *replay_sources(config)]
    encoder = encoder_for(config.sink.options.format, config.record)
    return transform_for(sources, config.record, assembly.steps, assembly.model, encoder)


def _is_journal_whole(reader: StateReader, manifest: Mapping[str, Any]) -> bool:
    """Whether the journal has all of the run's batches: old ones are pruned before the run itself."""
    journal = sum(entry.scored + entry.dead for entry in reader.journal(manifest["run"]))
    return bool(journal == manifest["counts"]["scored"] + manifest["counts"]["dead_lettered"])


def _batch(at: int, chunks: Sequence[Chunk]) -> Batch:
    count, size = sum(chunk.count for chunk in chunks), sum(chunk.size for chunk in chunks)
    # Sizes and stamps have no influence on scores, only the order and number of records have.
    return Batch(at + 1, chunks, count, size, "size", Stamps(0.0, 0.0))


async def _scored(transform: Transform, batch: Batch) -> Outcome:
    # As in a run: a NaN in one record must not print a warning.
    with np.errstate(all="ignore"):
        if transform.model.is_async:
            return await transform.run_async(batch, _now)
        return transform.run(batch, _now)


def _now() -> float:
    return 0.0


def _changed(known: VerifiedInput) -> Difference:
    where = f"{known.source} {known.partition}" + (f" ({known.path})" if known.path != known.partition else "")
    return Difference(what="input", where=where, recorded=known.recorded, found=known.found)


def _output_difference(entry: JournalEntry, error: OutputError, what: What = "output") -> Difference:
    return Difference(what=what, where="files", recorded="what the journal says", found=str(error), batch=entry.batch)
