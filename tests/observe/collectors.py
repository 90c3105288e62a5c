"""A collector of traces: OTLP over HTTP on loopback, decoded, kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class ReceivedSpan(NamedTuple):
    """A span as it came: ids in hexadecimal, times in nanoseconds."""

    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]


class Collector(ThreadingHTTPServer):
    """Takes what is posted to /v1/traces."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[ReceivedSpan] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def batches(self) -> list[ReceivedSpan]:
        """The spans that have nothing above them, in the order of time."""
        return sorted((span for span in self.spans if not span.parent), key=lambda span: span.start)

    def parts_of(self, batch: ReceivedSpan) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.parent == batch.id and span.trace == batch.trace]


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector while the context lasts."""
    with Collector() as collector:
        serving = Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            serving.join()


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path != "/v1/traces" or self.headers["content-type"] != "application/x-protobuf":
            self.send_error(404)
            return
        self.server.spans += _spans_in(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _spans_in(request: Any) -> Iterator[ReceivedSpan]:
    for of_resource in request.resource_spans:
        resource = _plain(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                times = span.start_time_unix_nano, span.end_time_unix_nano
                yield ReceivedSpan(span.name, *ids, *times, _plain(span.attributes), resource)


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
