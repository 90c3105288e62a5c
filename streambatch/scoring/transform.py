"""From a batch of raw records to encoded scores and rejects, in three parts: prepare, score, finish.

Every record of the batch ends as exactly one of: a scored row, a reject, a row that a step filtered. No clock and no
IO but the model's own: times are read through the `now` a caller passes in, so that the same transform runs inline, in
a thread, in a process or on a distributed engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import numpy as np

from streambatch.codecs.columns import concatenated, item, take, values
from streambatch.codecs.finite import all_finite
from streambatch.core.batches import Batch
from streambatch.core.bisect import Bisection, isolate
from streambatch.core.chunks import Chunk, Reason
from streambatch.core.codec import Decoder, Encoder, Framing
from streambatch.core.errors import ModelError
from streambatch.core.events import Observer
from streambatch.core.outcomes import (
    Outcome,
    RecordId,
    Reject,
    Rows,
    Stage,
)
from streambatch.core.parts import Model, Step
from streambatch.core.retry import ONCE, error_text
from streambatch.core.types import BoolArray, FloatArray, IntArray
from streambatch.scoring.attempts import Attempts
from streambatch.scoring.calling import is_interrupt, stepped, stepped_on
from streambatch.scoring.check import checked_scores
from streambatch.scoring.replies import filtered_line, reject_line, replies_of
from streambatch.scoring.states import (
    States,
    StepMemory,
    Steps,
    check_storable,
    dump_states,
    initial_states,
    load_states,
)

Now = Callable[[], float]


class SourceFormat:
    """How one source's chunks become rows."""

    def __init__(self, decoder: Decoder, framing: Framing, validate: Callable[[Rows, Sequence[Chunk]], Rows]) -> None:
        self.decoder, self.framing, self.validate = decoder, framing, validate


class Prepared:
    """A batch on its way through the transform: the rows still alive, and the places of the others.

    states: those of steps with memory after the batch; None where there is no such step.
    """

    __slots__ = ("batch", "carry", "filtered", "filtered_ids", "ids", "index", "rejects", "states", "x")

    def __init__(self, batch: Batch, rows: Rows) -> None:
        self.batch = batch
        self.ids, self.x, self.carry, self.index = rows.ids, rows.x, rows.carry, rows.index
        self.rejects: list[Reject] = list(rows.rejects)
        self.filtered: list[int] = []
        self.filtered_ids: list[RecordId] = []
        self.states: States | None = None

    def places(self) -> IntArray:
        """Return each row's place in the batch."""
        return np.arange(len(self.ids)) if self.index is None else self.index

    def keep(self, mask: BoolArray) -> None:
        """Keep the rows that `mask` marks; `x` is the caller's to narrow."""
        self.index = self.places()[mask]
        self.ids = take(self.ids, mask)
        self.carry = [take(column, mask) for column in self.carry]


class Transform:
    """Decode, validate, preprocess, score and encode one batch.

    formats: by source name. Steps with memory are called in the order of batches: see `is_ordered`. reply_encoder: what
    writes JSON lines, if a source replies; `encoder` itself if it does. is_proven: this model has scored records in an
    earlier run, so that a first batch that fails whole is no sign of a wrong one.
    """

    def __init__(
        self,
        formats: Mapping[str, SourceFormat],
        steps: Steps,
        model: Model,
        encoder: Encoder,
        *,
        reply_encoder: Encoder | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.formats, self.steps, self.model, self.encoder = formats, steps, model, encoder
        self.model_name, self.reply_encoder, self.is_proven = model.name, reply_encoder, False
        self._observer = observer or Observer()
        self.is_ordered = any(step.is_stateful for step in steps)
        self._memory = StepMemory(initial_states(steps))

    def dump(self, states: States | None) -> bytes:
        """Return an outcome's states of steps with memory as bytes; empty if there is no such step."""
        return b"" if states is None else dump_states(self.steps, states)

    def restore(self, data: bytes | None) -> None:
        """Start, before the first batch, with the states of a dump; with initial states if it is None or empty.

        Raises StepError for a step whose state can't be stored, and for the dump of other steps.
        """
        check_storable(self.steps)
        self._memory.states = load_states(self.steps, data) if data else initial_states(self.steps)

    def go_on_from(self, other: Transform) -> None:
        """Share the states of a transform of the same steps, whose batches come before."""
        if self.is_ordered:
            # The object, not its states: batches that the other prepares meanwhile move them.
            self._memory = other._memory

    def prepare(self, batch: Batch, now: Now) -> Prepared:
        """Decode, validate and preprocess. Must be called in order of batches when `is_ordered`."""
        stamps = batch.stamps
        runs = _runs(batch.chunks)
        decoded = [self.formats[source].decoder.decode(chunks) for source, chunks in runs]
        stamps.decoded = now()
        valid = [
            self.formats[source].validate(rows, chunks) for (source, chunks), rows in zip(runs, decoded, strict=True)
        ]
        prepared = Prepared(batch, valid[0] if len(valid) == 1 else _joined(valid, runs))
        stamps.validated = now()
        if len(prepared.ids):
            self._observer.features_seen(prepared.x)
        for at in range(len(self.steps)):
            if len(prepared.ids):
                self._preprocess(prepared, at)
        if self.is_ordered:
            # Steps return new states and leave the old ones as they were, so that no copy is needed.
            prepared.states = self._memory.states
        stamps.preprocessed = now()
        return prepared

    def call(self, prepared: Prepared, span: slice) -> FloatArray:
        """Return the model's scores of some of the rows: (n,) or (n, k). Changes nothing; any thread may call it.

        Raises what the model raises, always an Exception, but for an interrupt from the keyboard.
        """
        x = prepared.x[span]
        try:
            return checked_scores(self.model_name, self.model.score(x if self.model.keeps_input else x.copy()), len(x))
        except Exception:
            raise
        except BaseException as error:
            if is_interrupt(error):
                raise
            raise ModelError(self.model_name, f"raised {error_text(error)}") from error

    async def call_async(self, prepared: Prepared, span: slice) -> FloatArray:
        """Do what `call` does for an async model. Cancellation passes through."""
        x = prepared.x[span]
        try:
            scores = await self.model.score(x if self.model.keeps_input else x.copy())
            return checked_scores(self.model_name, scores, len(x))
        except (SystemExit, GeneratorExit) as error:  # they would end the event loop
            raise ModelError(self.model_name, f"raised {error_text(error)}") from error

    def complete(self, prepared: Prepared, attempts: Attempts, now: Now) -> Outcome:
        """Return the outcome of a batch whose attempts are over.

        Scores that are not finite and rows that the model can't take become rejects. Raises ModelError when the first
        batch of a run has no score at all, unless the model is proven.
        """
        stamps = prepared.batch.stamps
        scores = self._settle(prepared, attempts)
        if len(scores):
            self._observer.scores_seen(scores)
        stamps.retry_seconds, stamps.scored = attempts.retry_seconds, now()
        outcome = self._finish(prepared, scores, attempts.retries)
        stamps.encoded = now()
        return outcome

    def run(self, batch: Batch, now: Now) -> Outcome:
        """Prepare, score and complete a batch with a sync model, without retries."""
        prepared = self.prepare(batch, now)
        attempts = Attempts(len(prepared.ids), ONCE, float)
        while attempts.span is not None:
            attempts.started(now())
            try:
                scores = self.call(prepared, attempts.span)
            except Exception as error:
                attempts.failed(error, now())
            else:
                attempts.succeeded(scores)
        return self.complete(prepared, attempts, now)

    async def run_async(self, batch: Batch, now: Now) -> Outcome:
        """Do what `run` does for an async model."""
        prepared = self.prepare(batch, now)
        attempts = Attempts(len(prepared.ids), ONCE, float)
        while attempts.span is not None:
            attempts.started(now())
            try:
                scores = await self.call_async(prepared, attempts.span)
            except Exception as error:
                attempts.failed(error, now())
            else:
                attempts.succeeded(scores)
        return self.complete(prepared, attempts, now)

    def _finish(self, prepared: Prepared, scores: FloatArray, retries: int) -> Outcome:
        """Encode the scores that are finite; the others become rejects."""
        if not all_finite(scores):
            scores = self._drop_non_finite(prepared, scores)
        payload = self.encoder.encode(prepared.ids, scores, prepared.carry) if len(prepared.ids) else b""
        prepared.rejects.sort(key=_index_of)
        replies = () if self.reply_encoder is None else self._replies(prepared, payload, scores)
        return Outcome(
            payload,
            _scored(prepared),
            prepared.rejects,
            _filtered(prepared),
            replies,
            index=prepared.index,
            states=prepared.states,
            retries=retries,
        )

    def refused(self, batch: Batch, place: int, error: str) -> Reject:
        """Return the reject of a record that was scored and that the sink won't take, by its place in the batch."""
        return self._reject(batch, place, "sink", "sink_refused", error, None)

    def _replies(self, prepared: Prepared, payload: bytes, scores: FloatArray) -> Sequence[bytes]:
        encoder = self.reply_encoder
        if encoder is None or all(chunk.origin is None for chunk in prepared.batch.chunks):
            return ()
        lines = payload
        if encoder is not self.encoder and len(prepared.ids):
            lines = encoder.encode(prepared.ids, scores, prepared.carry)
        others = {reject.index: reject_line(reject) for reject in prepared.rejects}
        others |= dict(zip(prepared.filtered, map(filtered_line, prepared.filtered_ids), strict=True))
        return replies_of(prepared.batch, lines, prepared.places(), others)

    def _preprocess(self, prepared: Prepared, at: int) -> None:
        step, x, states = self.steps[at], prepared.x, self._memory.states
        if step.is_stateful:
            # An error is not narrowed down: a row that is left out would be missing from the states of all that follow.
            state, prepared.x = stepped_on(step, states[at], x)
            self._memory.states = (*states[:at], state, *states[at + 1 :])
            return
        try:
            prepared.x, mask = stepped(step, x)
        except Exception as error:
            mask = self._isolate_step(prepared, step, error)
        if mask is not None and not mask.all():
            prepared.filtered += prepared.places()[~mask].tolist()
            if self.reply_encoder is not None:
                prepared.filtered_ids += values(take(prepared.ids, ~mask))
            prepared.x = prepared.x[mask]
            prepared.keep(mask)

    def _isolate_step(self, prepared: Prepared, step: Step, error: Exception) -> BoolArray | None:
        x = prepared.x
        bisection = isolate(lambda span: stepped(step, x[span]), len(x), error)
        self._blame(prepared, bisection, "preprocess", "step_error", f"preprocess step {step.name}")
        if not bisection.results:
            return None
        prepared.x = np.concatenate([y for _, _, (y, _) in bisection.results])
        masks = [np.ones(len(y), bool) if mask is None else mask for _, _, (y, mask) in bisection.results]
        return np.concatenate(masks)

    def _settle(self, prepared: Prepared, attempts: Attempts) -> FloatArray:
        bisection = attempts.bisection
        if bisection is None:
            return np.empty(0) if attempts.scores is None else attempts.scores
        if bisection.guilty:
            # A wrong model must not turn the whole input into dead letters.
            if prepared.batch.sequence == 0 and not bisection.results and not self.is_proven:
                cause = bisection.guilty[0][1]
                raise ModelError(self.model_name, f"failed on the whole first batch: {error_text(cause)}") from cause
            self._blame(prepared, bisection, "score", "model_error", f"model {self.model_name}")
        parts = [scores for _, _, scores in bisection.results]
        return np.concatenate(parts) if parts else np.empty(0)

    def _blame(
        self, prepared: Prepared, bisection: Bisection[Exception], stage: Stage, reason: Reason, who: str
    ) -> None:
        """Make rejects of the guilty rows and keep the others."""
        places = prepared.places()
        for row, error in bisection.guilty:
            text = str(error) if isinstance(error, ModelError) else f"{who}: {error_text(error)}"
            prepared.rejects.append(
                self._reject(prepared.batch, int(places[row]), stage, reason, text, item(prepared.ids, row))
            )
        mask = np.zeros(len(prepared.ids), bool)
        mask[bisection.kept()] = True
        prepared.keep(mask)

    def _drop_non_finite(self, prepared: Prepared, scores: FloatArray) -> FloatArray:
        mask = np.atleast_1d(np.isfinite(scores).reshape(len(scores), -1).all(axis=1))
        places = prepared.places()
        for row in np.flatnonzero(~mask).tolist():
            error = f"model {self.model_name}: expected a finite score, found {scores[row]}"
            place, record_id = int(places[row]), item(prepared.ids, row)
            prepared.rejects.append(self._reject(prepared.batch, place, "score", "non_finite_score", error, record_id))
        prepared.keep(mask)
        return np.asarray(scores[mask])

    def _reject(
        self, batch: Batch, place: int, stage: Stage, reason: Reason, error: str, record_id: RecordId | None
    ) -> Reject:
        chunk, index = batch.locate(place)
        framing = self.formats[chunk.partition.source].framing
        return Reject(
            place,
            chunk.partition,
            chunk.position_of(index),
            stage,
            reason,
            error,
            framing.strip(chunk.raw(index)),
            record_id,
        )


def _runs(chunks: Sequence[Chunk]) -> list[tuple[str, Sequence[Chunk]]]:
    """Return consecutive chunks of one source together."""
    first = chunks[0].partition.source
    if len(chunks) == 1:
        return [(first, chunks)]
    return [(source, list(run)) for source, run in groupby(chunks, _source_of)]


def _source_of(chunk: Chunk) -> str:
    return chunk.partition.source


def _index_of(reject: Reject) -> int:
    return reject.index


def _joined(parts: Sequence[Rows], runs: Sequence[tuple[str, Sequence[Chunk]]]) -> Rows:
    """Join the rows of consecutive runs of chunks; places and rejects then count from the start of the batch."""
    index: list[IntArray] = []
    rejects: list[Reject] = []
    start = 0
    for rows, (_, chunks) in zip(parts, runs, strict=True):
        index.append(start + (np.arange(len(rows.ids)) if rows.index is None else rows.index))
        rejects += [_shifted(reject, start) for reject in rows.rejects]
        start += sum(chunk.count for chunk in chunks)
    ids = concatenated([rows.ids for rows in parts])
    carry = [concatenated(columns) for columns in zip(*(rows.carry for rows in parts), strict=True)]
    return Rows(ids, np.concatenate([rows.x for rows in parts]), carry, np.concatenate(index), rejects)


def _shifted(reject: Reject, start: int) -> Reject:
    fields = {name: getattr(reject, name) for name in reject.__struct_fields__}
    return Reject(**{**fields, "index": reject.index + start})


def _scored(prepared: Prepared) -> dict[str, int]:
    return _by_source(prepared.batch, prepared.index, len(prepared.ids))


def _filtered(prepared: Prepared) -> dict[str, int]:
    if not prepared.filtered:
        return {}
    return _by_source(prepared.batch, np.asarray(prepared.filtered), len(prepared.filtered))


def _by_source(batch: Batch, places: IntArray | None, count: int) -> dict[str, int]:
    """Return how many of the records at `places` came from each source."""
    first = batch.chunks[0].partition.source
    if len(batch.chunks) == 1 or all(chunk.partition.source == first for chunk in batch.chunks):
        return {first: count}
    counts: Counter[str] = Counter()
    if places is None:
        for chunk in batch.chunks:
            counts[chunk.partition.source] += chunk.count
        return dict(counts)
    ends = np.cumsum([chunk.count for chunk in batch.chunks])
    for at, records in enumerate(np.bincount(np.searchsorted(ends, places, side="right")).tolist()):
        if records:
            counts[batch.chunks[at].partition.source] += records
    return dict(counts)
