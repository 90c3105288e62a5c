"""Prove from state and files alone that every record is accounted for. Nothing is run and nothing is changed.

Three things are checked: the counts balance; the journal has each partition's records once and in order; the files hold
the committed bytes and as many records as were scored and died. A pipeline may run meanwhile: its last checkpoint is
audited.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from streambatch.codecs.formats import format_of
from streambatch.config.config import Config
from streambatch.core.archive import OutputLayout
from streambatch.core.report import Counts
from streambatch.durability.store.reader import StateReader
from streambatch.durability.stored import RunSummary, StoredState
from streambatch.ops.dead_letters import DeadLetterReader, dead_letter_layout
from streambatch.ops.outputs import OutputError, OutputPosition, OutputSegments, position_of
from streambatch.ops.rereading import gap_is_empty

PartitionKey = tuple[str, str]
"""A source and a partition."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check. what: its subject. expected, found: numbers that must be equal. why: what it means if not."""

    what: str
    expected: int
    found: int
    is_right: bool
    why: str = ""


class Audit(msgspec.Struct, kw_only=True):
    """The result of an audit. counts: of all runs since the state was created or reset."""

    state_dir: str
    counts: dict[str, int] = {}
    checks: list[Check] = []
    notes: list[str] = []

    @property
    def is_right(self) -> bool:
        return all(check.is_right for check in self.checks)

    def check(self, what: str, expected: int, found: int, why: str = "", *, is_right: bool | None = None) -> None:
        """Add a check. It is right if both numbers are equal, unless `is_right` says otherwise."""
        right = expected == found if is_right is None else is_right
        self.checks.append(Check(what=what, expected=expected, found=found, is_right=right, why="" if right else why))


class _AuditedRun(NamedTuple):
    """A run with what its journal says.

    is_whole: whether no entry of the journal was pruned. scores: records scored by segment of the output; the key is
    None for an output without segments.
    """

    summary: RunSummary
    manifest: Mapping[str, Any]
    is_whole: bool
    scores: Mapping[int | None, int]


def audit(config: Config, reader: StateReader) -> Audit:
    """Check the state, and the files that it speaks of."""
    state = reader.load()
    result = Audit(state_dir=str(config.state_dir))
    total = Counts()
    for counts in state.counts.values():
        total.add(counts)
    result.counts = total.as_records()
    runs = [_check_journal(reader, summary, result) for summary in reader.runs()]
    _check_identity(state, runs, result)
    for key, partition in _partitions(state):
        _check_chain(config, key, partition.position, partition.records, runs, result)
    _check_output(config, state, runs, result)
    _check_dead_letters(config, state, runs, result)
    return result


def _check_journal(reader: StateReader, summary: RunSummary, result: Audit) -> _AuditedRun:
    """Check the journal of a run against its counts and the partitions that it read."""
    manifest, run = reader.manifest(summary.run), summary.run
    counts = summary.counts
    ends: dict[PartitionKey, int] = {}
    starts: dict[PartitionKey, int] = {}
    records: Counter[PartitionKey] = Counter()
    scores: Counter[int | None] = Counter()
    scored = dead = breaks = 0
    for entry in reader.journal(run):
        scored, dead = scored + entry.scored, dead + entry.dead
        scores[entry.place[0] if entry.place is not None else None] += entry.scored
        for each in entry.ranges:
            key = each.source, each.partition
            breaks += key in ends and each.start != ends[key]
            starts.setdefault(key, each.start)
            ends[key] = each.end
            records[key] += each.records
    is_whole = (scored, dead) == (counts.scored, counts.dead_lettered)
    result.check(f"run {run}: ranges that don't follow each other", 0, breaks)
    # A short journal is no mistake if `[runs] keep` pruned its beginning; then none of the checks below can hold.
    if not is_whole and _is_pruned(manifest, starts):
        result.notes.append(f"run {run}: the beginning of its journal is no longer kept")
        return _AuditedRun(summary, manifest, False, scores)
    result.check(f"run {run}: scored, by its journal", counts.scored, scored, "the journal is not whole")
    result.check(f"run {run}: dead, by its journal", counts.dead_lettered, dead, "the journal is not whole")
    # Filtered records are in the journal's ranges, but are neither scores nor dead letters.
    filtered = counts.dropped.get("filtered", 0)
    result.check(f"run {run}: records, by its journal", scored + dead + filtered, records.total())
    for source, known in manifest["sources"].items():
        for read in known["partitions"]:
            key, name = (source, read["partition"]), f"run {run}: {source} {read['partition']}"
            result.check(f"{name}: begins where it was read from", read["first"], starts.get(key, -1))
            result.check(f"{name}: ends where it was read to", read["last"], ends.get(key, -1))
            result.check(f"{name}: records", read["records"], records[key])
    return _AuditedRun(summary, manifest, is_whole, scores)


def _is_pruned(manifest: Mapping[str, Any], starts: Mapping[PartitionKey, int]) -> bool:
    """Whether the beginning of a run's journal was pruned: a partition begins later in it, or not at all."""
    return any(
        starts.get((source, read["partition"])) != read["first"]
        for source, known in manifest["sources"].items()
        for read in known["partitions"]
    )


def _check_identity(state: StoredState, runs: Sequence[_AuditedRun], result: Audit) -> None:
    for run in runs:
        for source, known in run.manifest["sources"].items():
            counts = known["counts"]
            came = counts["received"] + counts["recovered"]
            went = sum(counts[name] for name in ("scored", "dead_lettered", "dropped", "unacked"))
            name = f"run {run.summary.run}: {source}: received + recovered"
            result.check(name, came, went, "not what is scored, dead, dropped and unacked")
    # Totals have only the last run's unacked records: those that earlier runs left behind are added here.
    behind: Counter[str] = Counter()
    for run in runs[:-1]:
        for source, known in run.manifest["sources"].items():
            behind[source] += known["counts"]["unacked"]
    # Totals cover all runs since the state began: without the first run, what was left behind is not known.
    is_all = bool(runs) and runs[0].summary.number == 1
    for source, totals in state.counts.items():
        name = f"{source}: in all runs, received + recovered"
        went = totals.scored + totals.dead_lettered + sum(totals.dropped.values()) + totals.unacked
        came = totals.received + totals.recovered
        if is_all and not _was_reset(state, runs, source):
            result.check(name, came, went + behind[source], "not what is scored, dead, dropped, unacked or left behind")


def _was_reset(state: StoredState, runs: Sequence[_AuditedRun], source: str) -> bool:
    """Whether the counts of a source were reset after its first run."""
    received = sum(
        run.manifest["sources"].get(source, {"counts": {"received": 0}})["counts"]["received"] for run in runs
    )
    return bool(received != state.counts[source].received)


def _partitions(state: StoredState) -> Iterator[tuple[PartitionKey, Any]]:
    for source, partitions in state.partitions.items():
        for name, partition in partitions.items():
            yield (source, name), partition


def _check_chain(
    config: Config, key: PartitionKey, position: int, records: int, runs: Sequence[_AuditedRun], result: Audit
) -> None:
    """Follow a partition back from its position, run by run: no record may be read twice, and none left out."""
    name = " ".join(key)
    end, missing, reads = position, records, list(_reads(key, runs))
    for read in reversed(reads):
        if not missing:
            break
        if read["last"] != end and read["records"]:
            right = read["last"] < end and _is_gap_empty(config, key, read, end)
            what = "read twice" if read["last"] > end else "left out"
            result.check(f"{name}: goes on where it was", read["last"], end, f"records {what} between", is_right=right)
        missing -= read["records"]
        end = read["first"]
    # Older runs are pruned after `[runs] keep`, so their share of the records can't be found.
    if missing and runs and runs[0].summary.number > 1:
        result.notes.append(f"{name}: {missing} of its records are of runs that are no longer kept")
    else:
        result.check(f"{name}: records, by its runs", records, records - missing)


def _reads(key: PartitionKey, runs: Sequence[_AuditedRun]) -> Iterator[Mapping[str, Any]]:
    for run in runs:
        for read in run.manifest["sources"].get(key[0], {"partitions": ()})["partitions"]:
            if read["partition"] == key[1]:
                yield read


def _is_gap_empty(config: Config, key: PartitionKey, read: Mapping[str, Any], end: int) -> bool:
    for part in config.sources:
        archive = part.source.archive() if part.options.name == key[0] else None
        if archive is not None:
            found = archive.find(key[1], read["identity"])
            return found is not None and gap_is_empty(found, read["last"], end)
    return False


def _check_output(config: Config, state: StoredState, runs: Sequence[_AuditedRun], result: Audit) -> None:
    """Compare the number of records in the output's files with that in the journal."""
    sink, mark = config.sink.sink, state.outputs.get("sink")
    if (layout := sink.files()) is None:
        result.notes.append(f"sink {sink.name} keeps no scores to count")
        return
    if mark is None:
        return
    segments, place = OutputSegments(layout, mark), position_of(mark)
    _check_length("output", segments, place, result)
    since = _runs_since(runs, "sink", mark)
    # The output also holds the scores of pruned entries, which can't be told apart from surplus ones.
    if not since or not all(run.is_whole for run in since):
        result.notes.append("output: not counted; the journal of the runs that began it is no longer kept")
        return
    start = position_of(since[-1].manifest["sinks"]["sink"]["from"])
    scores: Counter[int | None] = Counter()
    for run in since:
        scores.update(run.scores)
    lost = 0
    for number in range(start.segment, place.segment + 1):
        end = place.length if number == place.segment else None
        # The open segment has no committed record yet.
        if end == 0:
            continue
        if segments.find(number) is None:
            lost += scores[number]
            if not layout.is_rotated:
                result.check(f"{segments.name(number)}: scores", scores[number], 0, "the file is missing")
            continue
        # A Parquet file has no footer, and so no readable row, before it is closed.
        if format_of(layout.format).is_whole_only and not segments.is_closed(number):
            continue
        offset = start.length if number == start.segment else 0
        _count(segments, number, offset, end, scores[number], result)
    if lost and layout.is_rotated:
        result.notes.append(f"output: {lost} scores are in segments that were taken away")


def _runs_since(runs: Sequence[_AuditedRun], output: str, mark: Mapping[str, Any]) -> list[_AuditedRun]:
    """Return the runs that wrote the output up to this mark, the last one first."""
    since: list[_AuditedRun] = []
    after = position_of(mark)
    for run in reversed(runs):
        known = run.manifest["sinks"].get(output, {})
        if not known.get("to"):
            continue
        # A gap means that the output was replaced, or the state reset: earlier runs wrote to another output.
        if position_of(known["to"]) != after:
            break
        after = position_of(known["from"])
        since.append(run)
    return since


def _count(segments: OutputSegments, number: int, start: int, end: int | None, scores: int, result: Audit) -> None:
    what = f"{segments.find(number)}: scores"
    try:
        records = segments.read(number, start, end)
        try:
            result.check(what, scores, records.count(), "not as many as the journal has")
        finally:
            records.close()
    except (OutputError, OSError, ValueError) as error:
        result.check(what, scores, 0, str(error), is_right=False)


def _check_length(name: str, segments: OutputSegments, place: OutputPosition, result: Audit) -> None:
    """Check that the open segment has at least its committed length."""
    if not place.length:
        return
    path = segments.find(place.segment)
    size = path.stat().st_size if path is not None else 0
    what = f"{name}: bytes in {path or segments.name(place.segment)}, at least as committed"
    # The mark may point at a segment that was closed since and taken away by its reader.
    is_taken = path is None and segments.layout.is_rotated and segments.closed() != []
    result.check(what, place.length, size, "what was committed is not there", is_right=size >= place.length or is_taken)


def _check_dead_letters(config: Config, state: StoredState, runs: Sequence[_AuditedRun], result: Audit) -> None:
    """Check the number of dead letters of each run, and that none is there twice."""
    mark, layout = state.outputs.get("dead_letters"), dead_letter_layout(config)
    if mark is None:
        return
    segments, place = OutputSegments(layout, mark), position_of(mark)
    _check_length("dead letters", segments, place, result)
    found, doubled, missing = _count_dead_letters(layout, state, runs, mark)
    if isinstance(missing, str):
        result.check("dead letters", 0, 1, missing)
        return
    for run in _runs_since(runs, "dead_letters", mark):
        dead, there = run.summary.counts.dead_lettered, found[run.summary.run]
        if not missing:
            result.check(f"run {run.summary.run}: dead letters", dead, there, "not as many as died")
    if missing:
        result.notes.append(f"dead letters: not counted; {missing} segments were taken away")
    result.check("dead letters that are there twice", 0, doubled)


def _count_dead_letters(
    layout: OutputLayout, state: StoredState, runs: Sequence[_AuditedRun], mark: Mapping[str, Any]
) -> tuple[Counter[str], int, int | str]:
    """Return the dead letters by run, the number of doubled ones, and the number of missing segments or an error."""
    found: Counter[str] = Counter()
    last: dict[tuple[str, str, bool], int] = {}
    doubled = 0
    letters = DeadLetterReader(layout, None, mark, mark)
    begun = {key: _runs_of(key, runs, partition.records) for key, partition in _partitions(state)}
    try:
        for letter in letters:
            found[letter.run] += 1
            partition = letter.source, letter.partition
            if letter.run in begun.get(partition, ()):
                # Positions rise within a partition, so that one that doesn't is doubled. Those of records
                # that the sink refused rise in an order of their own.
                key = *partition, letter.stage == "sink"
                doubled += letter.position <= last.get(key, -1)
                last[key] = letter.position
    except (OutputError, OSError) as error:
        return found, doubled, str(error)
    return found, doubled, len(letters.missing)


def _runs_of(key: PartitionKey, runs: Sequence[_AuditedRun], records: int) -> set[str]:
    """Return the runs that read a partition since its state began, or was reset."""
    found: set[str] = set()
    for run in reversed(runs):
        for read in _reads(key, [run]):
            if records <= 0:
                return found
            found.add(run.summary.run)
            records -= read["records"]
    return found
