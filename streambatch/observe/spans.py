"""Spans as OpenTelemetry has them, and how they get to a collector: the only module that imports its libraries.

A thread of the library sends them. An outage of the collector is logged once, not for each try.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from threading import Event, Thread

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import set_span_in_context

from streambatch.version import __version__

_SDK_LOG, _EXPORTER_LOG = logging.getLogger("opentelemetry.sdk"), logging.getLogger("opentelemetry.exporter")
_EXPORTER_LOG.addHandler(logging.NullHandler())  # for what is said when nobody listens any more
LAST_SECONDS = 0.5
"""How long the sending thread may take to notice that it is too late."""


class Spans:
    """Makes the spans of batches and has them sent.

    endpoint: the whole address; by default what the environment says. exporter: sends in its place.
    """

    def __init__(self, endpoint: str | None, exporter: SpanExporter | None = None) -> None:
        _SDK_LOG.setLevel(logging.CRITICAL)  # it would log each time that a full queue drops a span
        self._exporter = _TellingExporter(exporter or OTLPSpanExporter(endpoint=endpoint))
        said = OTELResourceDetector().detect().attributes
        resource = Resource.create({"service.name": "streambatch", "service.version": __version__, **said})
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("streambatch", __version__)

    def send(
        self,
        start: float,
        end: float,
        parts: Sequence[tuple[str, float, float]],
        attributes: Mapping[str, str | int],
        wall_ahead: float,
    ) -> str | None:
        """Have a span for a batch sent, and one below it for each part: name, start and end.

        wall_ahead: what to add to times to get seconds since the epoch. Returns the trace's id, in hexadecimal; None
        when the environment has turned the library off.
        """
        span = self._tracer.start_span("batch", attributes=attributes, start_time=_nanoseconds(start, wall_ahead))
        if not span.is_recording():
            return None
        within = set_span_in_context(span)
        for name, began, ended in parts:
            part = self._tracer.start_span(name, within, start_time=_nanoseconds(began, wall_ahead))
            part.end(_nanoseconds(ended, wall_ahead))
        span.end(_nanoseconds(end, wall_ahead))
        return f"{span.get_span_context().trace_id:032x}"

    def close(self, seconds: float) -> None:
        """Send what is left for so long, then give it up; it blocks."""
        closing = Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        closing.start()
        closing.join(seconds)
        if closing.is_alive():
            self._exporter.shutdown()
            closing.join(LAST_SECONDS)


class _TellingExporter(SpanExporter):
    """Exports by another, logs when that begins to fail and when it works again, and can be shut down twice."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter, self._is_shut, self._is_failing = exporter, Event(), False
        self._heard = _FirstWord()
        # The library would log each try that fails.
        _EXPORTER_LOG.addHandler(self._heard)
        _EXPORTER_LOG.propagate = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._is_shut.is_set():
            return SpanExportResult.FAILURE
        self._heard.said = None
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            self._heard.said, result = repr(error), SpanExportResult.FAILURE
        self._tell(is_failing=result is not SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        if not self._is_shut.is_set():
            self._is_shut.set()
            self._exporter.shutdown()
            _EXPORTER_LOG.removeHandler(self._heard)

    def _tell(self, *, is_failing: bool) -> None:
        if is_failing and not self._is_failing:
            structlog.get_logger().warning("traces_lost", error=self._heard.said, hint="the pipeline goes on")
        elif self._is_failing and not is_failing:
            structlog.get_logger().info("traces_sent_again")
        self._is_failing = is_failing


class _FirstWord(logging.Handler):
    """Keeps what is logged first: of an attempt with retries, that is why."""

    said: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.said = self.said or record.getMessage()


def _nanoseconds(moment: float, wall_ahead: float) -> int:
    return int((moment + wall_ahead) * 1e9)
