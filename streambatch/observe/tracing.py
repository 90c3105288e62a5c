"""Trace a sample of the batches: one trace for each, with a span for each part of its way, sent to a collector.

A trace is made from the stamps of a batch once it is written. Nothing is done per record, and nothing for a batch that
is not sampled. A thread sends the spans from a bounded queue: a collector that is slow or away costs traces, never
records. Needs the extra `otel`, which is imported only if tracing is enabled.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate, pairwise
from operator import attrgetter
from random import Random
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from prometheus_client.samples import Exemplar
from pydantic import Field

from streambatch.core.batches import Batch
from streambatch.core.chunks import Chunk
from streambatch.core.clock import Clock
from streambatch.core.errors import ConfigError, ConfigProblem, OptionError
from streambatch.core.events import Observer
from streambatch.core.options import options
from streambatch.core.outcomes import Outcome
from streambatch.observe.batch_log import OF_BATCH, OF_CHUNK, scored_of
from streambatch.observe.catalogue import SECONDS

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from streambatch.observe.spans import Spans

TRACES_PER_SECOND = 50.0
TRACES_AT_ONCE = 50.0
"""Most batches traced per second, and in a burst: a trace costs the event loop about 0.3 ms."""
CLOSE_SECONDS = 3.0
"""Time that the end of a run waits for the last spans to be sent."""
_PATH = "/v1/traces"
_PARTS = [label if name == "stage_duration_seconds" else f"wait {label}" for name, label in (*OF_CHUNK, *OF_BATCH)]
_CHUNK_TIMES = attrgetter("arrived_at", "entered_at", "taken_at")
_TIMES = attrgetter("closed", "started", "decoded", "validated", "preprocessed")
_LATER_TIMES = attrgetter("scored", "encoded", "sink_started", "written")


@options
class OtelOptions:
    """Send traces of batches to an OpenTelemetry collector."""

    enabled: bool = False
    """Needs the extra `otel`."""
    endpoint: str | None = None
    """Where the collector takes OTLP over HTTP, such as `http://127.0.0.1:4318`; `/v1/traces` follows where the address
    has no path. By default what `OTEL_EXPORTER_OTLP_ENDPOINT` says, else port 4318 of this machine."""
    sample: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of batches that are traced; of many, at most 50 a second."""

    def __post_init__(self) -> None:
        if self.endpoint is not None and not _is_address(self.endpoint):
            raise OptionError("endpoint", repr(self.endpoint), "an address such as http://127.0.0.1:4318")

    @property
    def address(self) -> str | None:
        """The endpoint with its path; None for that in the environment."""
        if self.endpoint is None or urlsplit(self.endpoint).path.strip("/"):
            return self.endpoint
        return self.endpoint.rstrip("/") + _PATH


def _is_address(endpoint: str) -> bool:
    try:
        url = urlsplit(endpoint)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number
        return False


class Tracing(Observer):
    """Traces the batches of one pipeline. Close it at the end.

    exporter: sends the spans in place of the one in the options. Raises ConfigError if the library is missing.
    """

    def __init__(
        self, options: OtelOptions, pipeline: str, clock: Clock, *, exporter: SpanExporter | None = None
    ) -> None:
        self._options, self._pipeline, self._clock = options, pipeline, clock
        self._spans = _spans(options, exporter)
        self._choice = Random()
        self._allowance, self._allowed_at = TRACES_AT_ONCE, clock.monotonic()
        self.run_id, self.model_digest = "", ""
        """Attributes of each trace; set them once they are known."""
        self.exemplars: dict[int, Exemplar] = {}
        """The last traced record in each bucket of the end-to-end latency, by the index of the bucket."""

    def batch_written(self, batch: Batch, outcome: Outcome) -> None:
        # Sampled first: only batches that are traced use up the allowance.
        if self._choice.random() >= self._options.sample or not self._may_trace(batch.stamps.written):
            return
        # Stamps are monotonic; spans need dates.
        wall_ahead = self._clock.wall() - self._clock.monotonic()
        times = _nanoseconds(_times_of(batch, min(batch.chunks, key=attrgetter("arrived_at"))), wall_ahead)
        # A part without length, such as a retry that never was, gets no span.
        parts = [(name, *part) for name, part in zip(_PARTS, pairwise(times), strict=True) if part[0] < part[1]]
        trace_id = self._spans.send(times[0], times[-1], parts, self._attributes(batch, outcome))
        if trace_id is not None:
            self._remember(batch, outcome, trace_id, wall_ahead)

    def close(self) -> None:
        """Send the queued spans. Blocks for up to CLOSE_SECONDS, so not for the event loop."""
        self._spans.close(CLOSE_SECONDS)

    def _may_trace(self, now: float) -> bool:
        earned = (now - self._allowed_at) * TRACES_PER_SECOND
        self._allowance, self._allowed_at = min(TRACES_AT_ONCE, self._allowance + max(0.0, earned)), now
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True

    def _attributes(self, batch: Batch, outcome: Outcome) -> dict[str, str | int]:
        attributes: dict[str, str | int] = {
            "pipeline": self._pipeline,
            "run": self.run_id,
            "batch": batch.sequence,
            "trigger": batch.trigger,
            "records": batch.count,
            "bytes": batch.size,
            "scored": sum(outcome.scored.values()),
            "dead_letters": sum(outcome.dead.values()),
            "filtered": sum(outcome.filtered.values()),
            "retries": outcome.retries,
            "model_digest": self.model_digest,
        }
        return {f"streambatch.{key}": value for key, value in attributes.items() if value != ""}

    def _remember(self, batch: Batch, outcome: Outcome, trace_id: str, wall_ahead: float) -> None:
        """Keep the latency of the oldest scored record as an exemplar. The histogram counts scored records only."""
        scored = scored_of(batch.chunks, outcome)
        arrivals = [chunk.arrived_at for chunk, records in zip(batch.chunks, scored, strict=True) if records]
        if arrivals:
            latency = batch.stamps.written - min(arrivals)
            exemplar = Exemplar({"trace_id": trace_id}, latency, batch.stamps.written + wall_ahead)
            self.exemplars[bisect_left(SECONDS, latency)] = exemplar


def _times_of(batch: Batch, oldest: Chunk) -> list[float]:
    """Return the times that bound the parts of a batch, from the arrival of its oldest record on. They never fall."""
    stamps = batch.stamps
    retried = stamps.preprocessed + stamps.retry_seconds
    # Stamps of two threads may go back by a little, and a span that ends before it starts is invalid.
    return list(accumulate((*_CHUNK_TIMES(oldest), *_TIMES(stamps), retried, *_LATER_TIMES(stamps)), max))


def _nanoseconds(times: Iterable[float], wall_ahead: float) -> list[int]:
    """Return monotonic seconds as nanoseconds since the epoch.

    Each term is rounded by itself. As a float, the sum would step by 238 ns: quick parts would lose their length.
    """
    ahead = round(wall_ahead * 1e9)
    return [ahead + round(time * 1e9) for time in times]


def _spans(options: OtelOptions, exporter: SpanExporter | None) -> Spans:
    try:
        from streambatch.observe.spans import Spans
    except ImportError:
        problem = ConfigProblem("otel.enabled", "true without its library", "true with pip install 'streambatch[otel]'")
        raise ConfigError([problem]) from None
    return Spans(options.address, exporter)
