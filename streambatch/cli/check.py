"""`streambatch check`: print what a config would run, and the scores of some real records. Writes nothing."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic

import anyio

from streambatch.cli.printing import print_rows
from streambatch.config.assemble import Assembly, load_config
from streambatch.config.config import Config
from streambatch.core.batches import Batch, Stamps
from streambatch.core.budget import Budget
from streambatch.core.chunks import Chunk
from streambatch.core.clock import Clock, SystemClock
from streambatch.core.errors import ConfigError, ConfigProblem
from streambatch.core.events import Observer, Refusal
from streambatch.core.intake import Intake, MemoryBudget
from streambatch.core.outcomes import Outcome
from streambatch.core.parts import Site, Source
from streambatch.core.text import encodable
from streambatch.core.units import format_duration, format_size
from streambatch.daemon.daemon import drift_of, tracing_of
from streambatch.scoring.factory import encoder_for, transform_for
from streambatch.scoring.transform import Transform


def check_config(path: Path, overrides: Sequence[str], sample: int) -> int:
    """Print what would run, and the scores of `sample` records of each file source. Returns the exit code.

    Raises StreambatchError for an error that `run` would end with at its start.
    """
    config = load_config(path, overrides=overrides)
    _check_extras(config)
    assembly = Assembly(config)
    print_rows(describe(assembly))
    for note in notes(assembly):
        print(encodable(f"note: {note}"), file=sys.stderr)
    if sample:
        sys.stdout.flush()
        anyio.run(_print_sample, assembly, sample)
    return 0


def describe(assembly: Assembly) -> Iterator[tuple[str, str]]:
    """Yield a description of the pipeline as rows of a word and a text."""
    config = assembly.config
    yield "pipeline", f"{config.name}, config {config.digest[:12]}"
    for part in config.sources:
        source = part.source
        yield "source", f"{source.name}: {part.type}, {source.format}, {source.where()}"
    count, shape = config.record.feature_count, config.record.feature_shape
    yield "record", f"{count} features {shape} of {config.record.dtype}, id {config.record.id or 'by position'}"
    batch = config.batch
    yield "batch", f"{batch.max_records} records, {format_size(batch.max_bytes)} or {format_duration(batch.max_wait)}"
    for step in config.preprocess:
        yield "preprocess", step.type
    digest = assembly.model_digest
    yield "model", f"{assembly.model_name}{f', sha256 {digest[:12]}' if digest else ''}"
    yield "workers", f"{config.workers.count}, {config.workers.executor}"
    sink = config.sink.sink
    path = sink.describe().get("path")
    yield "sink", f"{sink.name}: {config.sink.type}, {sink.format}{f', {path}' if path else ''}"
    yield "dead letters", config.dead_letter.path or str(config.state_dir / "dead_letters.jsonl")
    yield "state", str(config.state_dir)
    yield "admin port", config.http.listen


def notes(assembly: Assembly) -> Iterator[str]:
    """Yield notes on what may be a mistake, or may be intended."""
    if assembly.untried is not None:
        error = assembly.untried
        yield f"on records of zeros, steps and model fail with {type(error).__name__}: {error}"
    sink = assembly.config.sink.sink
    if (there := sink.conflict()) is not None:
        yield f"{there} is already there: run would stop; move it away or set sink.{sink.name}.if_exists"
    for key, path in _written(assembly.config):
        if (folder := _unwritable_folder(Path(path))) is not None:
            yield f"{key}: {folder} can't be written to; run would wait until it can"


def _check_extras(config: Config) -> None:
    """Build what observes a run, which needs its extra only then. Raises ConfigError with every missing extra."""
    problems: list[ConfigProblem] = []
    try:
        drift_of(config, SystemClock())
    except ConfigError as error:
        problems += error.problems
    try:
        if (tracing := tracing_of(config, SystemClock())) is not None:
            tracing.close()
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems, where=str(config.path))


def _written(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the files that a run writes outside its state folder: key and path."""
    sink = config.sink.sink
    for claim in sink.claims():
        if claim.kind == "output":
            yield f"sink.{sink.name}.{claim.option}", claim.value
    if config.dead_letter.path is not None:
        yield "dead_letter.path", config.dead_letter.path


def _unwritable_folder(path: Path) -> Path | None:
    """Return the folder that prevents a file from being created, or None. Missing folders are created by a run."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return None if os.access(folder, os.W_OK | os.X_OK) else folder


async def _print_sample(assembly: Assembly, records: int) -> None:
    config = assembly.config
    sources = [part.source for part in config.sources]
    encoder = encoder_for("jsonl", config.record)
    transform = transform_for(sources, config.record, assembly.steps, assembly.model, encoder)
    for source in sources:
        if (sample := source.sample()) is not None:
            for batch in _batches(await first_records(sample, records), config.batch.max_records):
                _print_outcome(await _scored(transform, batch))
        else:
            print(f"note: source {source.name} has no records to sample before it runs", file=sys.stderr)


async def first_records(source: Source, records: int) -> list[Chunk]:
    """Return the first `records` records of a source, or all, if there are fewer."""
    taken = _Taken(records)
    with taken.scope:
        await source.build(Site()).run(taken)
    return taken.chunks


class _Taken(Intake):
    """An intake that keeps the first records, then cancels the source."""

    def __init__(self, records: int) -> None:
        self.clock: Clock = SystemClock()
        # Without a limit: the sample is kept, and gives nothing back.
        self.memory: MemoryBudget = Budget(1 << 62)
        self.observer, self.run_id = Observer(), "check"
        self.scope = anyio.CancelScope()
        self.chunks: list[Chunk] = []
        self._left = records

    @property
    def has_room(self) -> bool:
        return True

    def refused(self, records: int, reason: Refusal) -> None:
        raise AssertionError("a file has no sender to refuse")

    async def put(self, chunk: Chunk) -> None:
        if self._left < chunk.count:
            # A source pushes whole blocks, which may hold more records than the sample.
            chunk = chunk.split_off(self._left) if self._left else chunk
        if self._left:
            self.chunks.append(chunk)
            self._left -= chunk.count
        if not self._left:
            self.scope.cancel()


def _batches(chunks: Sequence[Chunk], records_max: int) -> Iterator[Batch]:
    sequence = 0
    for chunk in chunks:
        while chunk.count > records_max:
            yield _batch(sequence, chunk.split_off(records_max))
            sequence += 1
        yield _batch(sequence, chunk)
        sequence += 1


def _batch(sequence: int, chunk: Chunk) -> Batch:
    now = monotonic()
    return Batch(sequence, [chunk], chunk.count, chunk.size, "size", Stamps(now, now))


async def _scored(transform: Transform, batch: Batch) -> Outcome:
    if transform.model.is_async:
        return await transform.run_async(batch, monotonic)
    return transform.run(batch, monotonic)


def _print_outcome(outcome: Outcome) -> None:
    sys.stdout.write(outcome.payload.decode())
    sys.stdout.flush()
    for reject in outcome.rejects:
        where = f"{reject.partition}, position {reject.position}"
        print(encodable(f"dead: {reject.stage}, {reject.reason}: {reject.error} ({where})"), file=sys.stderr)
