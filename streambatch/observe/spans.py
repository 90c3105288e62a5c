"""Make OpenTelemetry spans and send them to a collector. The only module that imports its libraries.

A thread of the library sends the spans. An outage of the collector is logged once, not for each attempt.
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
_EXPORTER_LOG.addHandler(
    logging.NullHandler()
)  # or Python prints what the library logs after the exporter was shut down
LAST_SECONDS = 0.5
"""Time that the sending thread may take to notice that it was shut down."""


class Spans:
    """Makes the spans of batches and sends them.

    endpoint: the whole address; by default that in the environment. exporter: used in place of one for the endpoint.
    """

    def __init__(self, endpoint: str | None, exporter: SpanExporter | None = None) -> None:
        _SDK_LOG.setLevel(logging.CRITICAL)  # it logs each span that a full queue drops
        self._exporter = _LoggingExporter(exporter or OTLPSpanExporter(endpoint=endpoint))
        detected = OTELResourceDetector().detect().attributes
        resource = Resource.create({"service.name": "streambatch", "service.version": __version__, **detected})
        # Closed by `close`, within its time, and not by an exit handler of the library.
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("streambatch", __version__)

    def send(
        self,
        start: int,
        end: int,
        parts: Sequence[tuple[str, int, int]],
        attributes: Mapping[str, str | int],
    ) -> str | None:
        """Queue a span for a batch, and a child span for each part, given as name, start and end.

        Times are nanoseconds since the epoch. Returns the trace id in hexadecimal; None if the environment has turned
        the library off.
        """
        span = self._tracer.start_span("batch", attributes=attributes, start_time=start)
        if not span.is_recording():
            return None
        within = set_span_in_context(span)
        for name, began, ended in parts:
            self._tracer.start_span(name, within, start_time=began).end(ended)
        span.end(end)
        return f"{span.get_span_context().trace_id:032x}"

    def close(self, seconds: float) -> None:
        """Send the queued spans for at most `seconds`, then drop the rest. Blocks."""
        # In a thread that may be left behind: the library's shutdown has no time limit of its own.
        closing = Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        closing.start()
        closing.join(seconds)
        if closing.is_alive():
            self._exporter.shutdown()
            closing.join(LAST_SECONDS)


class _LoggingExporter(SpanExporter):
    """Exports by another exporter, and logs when that begins to fail and works again. May be shut down twice."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter, self._is_shut, self._is_failing = exporter, Event(), False
        self._first_message = _FirstMessage()
        # The library logs each failed attempt; only the first message is kept, as the reason.
        _EXPORTER_LOG.addHandler(self._first_message)
        _EXPORTER_LOG.propagate = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._is_shut.is_set():
            return SpanExportResult.FAILURE
        self._first_message.text = None
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            self._first_message.text, result = repr(error), SpanExportResult.FAILURE
        self._log_change(is_failing=result is not SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        if not self._is_shut.is_set():
            self._is_shut.set()
            self._exporter.shutdown()
            _EXPORTER_LOG.removeHandler(self._first_message)

    def _log_change(self, *, is_failing: bool) -> None:
        if is_failing and not self._is_failing:
            structlog.get_logger().warning("traces_lost", error=self._first_message.text, hint="the pipeline goes on")
        elif self._is_failing and not is_failing:
            structlog.get_logger().info("traces_sent_again")
        self._is_failing = is_failing


class _FirstMessage(logging.Handler):
    """Keeps the first message logged: of an attempt with retries, it has the reason."""

    text: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.text = self.text or record.getMessage()
