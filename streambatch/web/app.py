"""What the admin port answers. Every answer is made at once from one snapshot; nothing here waits, writes or changes.

`/livez` and `/readyz` are asked every few seconds by probes and say in plain text what is wrong, if something is.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from email.utils import formatdate
from html import escape
from typing import Any, Protocol

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from streambatch.state.report import Snapshot
from streambatch.web.status import drivers_of, status_of

STUCK_SECONDS = 30.0
"""A driver that neither turned nor waits by design for so long is stuck."""

PAGES = {
    "/metrics": "metrics for Prometheus",
    "/livez": "does every stage get on?",
    "/readyz": "are records taken in, and can scores be written?",
    "/healthz": "both, with the reasons",
    "/status": "counts, queue, latency",
    "/config": "the config in effect",
}
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Observable(Protocol):
    """A pipeline, as far as the admin port sees it."""

    @property
    def name(self) -> str: ...

    def snapshot(self) -> Snapshot: ...


def create_app(
    *, pipeline: Observable, registry: CollectorRegistry, effective_config: Mapping[str, object]
) -> Starlette:
    """Return the app of one pipeline; serve it on the pipeline's event loop.

    effective_config: shown as it is, so secrets must be redacted already.
    """
    pages = _Pages(pipeline, registry, _json(effective_config))
    answers: dict[str, Callable[[Request], Response]] = {
        "/": pages.index,
        "/metrics": pages.metrics,
        "/livez": pages.livez,
        "/readyz": pages.readyz,
        "/healthz": pages.healthz,
        "/status": pages.status,
        "/config": pages.config,
    }
    app = Starlette(
        routes=[Route(path, _at_once(answer), methods=["GET"]) for path, answer in answers.items()],
        exception_handlers={HTTPException: _refused},
    )
    app.router.redirect_slashes = False
    return app


class _Pages:
    def __init__(self, pipeline: Observable, registry: CollectorRegistry, config: bytes) -> None:
        self._pipeline, self._registry, self._config = pipeline, registry, config
        self._index = _index_of(pipeline.name)

    def index(self, request: Request) -> Response:
        return HTMLResponse(self._index, headers=_HEADERS)

    def metrics(self, request: Request) -> Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
        headers = {**_HEADERS, "content-type": content_type}
        body = encode(self._registry)
        if gzip_accepted(request.headers.get("accept-encoding", "")):
            body = gzip.compress(body, compresslevel=1)
            headers["content-encoding"] = "gzip"
        return Response(body, headers=headers)

    def livez(self, request: Request) -> Response:
        stuck = self._pipeline.snapshot().stuck(STUCK_SECONDS)
        return _verdict([f"{driver}: stuck for more than {STUCK_SECONDS:.0f} s" for driver in stuck])

    def readyz(self, request: Request) -> Response:
        return _verdict(self._pipeline.snapshot().not_ready)

    def healthz(self, request: Request) -> Response:
        snapshot = self._pipeline.snapshot()
        stuck = snapshot.stuck(STUCK_SECONDS)
        health = {
            "live": not stuck,
            "ready": snapshot.is_ready,
            "stuck": stuck,
            "not_ready": snapshot.not_ready,
            "state": snapshot.state,
            "uptime_seconds": snapshot.uptime_seconds,
            "drivers": drivers_of(snapshot),
        }
        return _json_response(_json(health), 503 if stuck or not snapshot.is_ready else 200)

    def status(self, request: Request) -> Response:
        return _json_response(_json(status_of(self._pipeline.snapshot())))

    def config(self, request: Request) -> Response:
        return _json_response(self._config)


def _at_once(answer: Callable[[Request], Response]) -> Callable[[Request], Any]:
    """Return an endpoint that answers on the event loop; Starlette would send a plain function to a thread."""

    async def endpoint(request: Request) -> Response:
        response = answer(request)
        response.headers["date"] = formatdate(usegmt=True)
        return response

    return endpoint


def _verdict(reasons: list[str]) -> Response:
    text = "\n".join(reasons) if reasons else "ok"
    return PlainTextResponse(text + "\n", 503 if reasons else 200, headers=_HEADERS)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        problem = {"error": f"{request.url.path}: found {request.method}; allowed: GET, HEAD"}
    else:
        problem = {"error": f"{request.url.path}: no such page; allowed: {', '.join(('/', *PAGES))}"}
    return _json_response(_json(problem), error.status_code, error.headers)


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2) + b"\n"


def _json_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, status, headers={**_HEADERS, **(headers or {})}, media_type="application/json")


def _index_of(pipeline: str) -> str:
    links = "\n".join(f'<li><a href="{path}">{path}</a> {what}</li>' for path, what in PAGES.items())
    name = escape(pipeline)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{name} - streambatch</title>\n<h1>{name}</h1>\n<ul>\n{links}\n</ul>\n</html>\n"
    )
