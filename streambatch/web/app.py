"""The app of the admin port: metrics, probes, status, config and the live page.

Every answer is made from one snapshot and at once: nothing here waits, writes or changes anything. Only the events of
the live page go on. Everything but metrics and probes is behind a Guard.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
from email.utils import formatdate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from streambatch.core.report import STUCK_SECONDS
from streambatch.net.addresses import parse_address
from streambatch.web.answers import HEADERS, json_answer
from streambatch.web.guard import Guard
from streambatch.web.page import POLICY, Page
from streambatch.web.page_events import FOLLOWERS_MAX, EventFeed, EventStream
from streambatch.web.status import drivers_of
from streambatch.web.watch import Watch, WatchedPipeline

OPEN = ("/metrics", "/livez", "/readyz", "/healthz")
"""Paths that answer every client that reaches the port."""
PAGES = ("/", *OPEN, "/status", "/config", "/events")
_PAGE_HEADERS = {**HEADERS, "content-security-policy": POLICY, "referrer-policy": "no-referrer"}
_ASSET_HEADERS = {**HEADERS, "cache-control": "public, max-age=31536000, immutable"}


def create_app(
    *,
    pipeline: WatchedPipeline,
    registry: CollectorRegistry,
    effective_config: Mapping[str, object],
    watch: Watch,
    feed: EventFeed,
    listen: str = "localhost:0",
    token: str | None = None,
    more: Sequence[Route] = (),
) -> Starlette:
    """Return the app of one pipeline. It must be served on the pipeline's event loop, where snapshots are taken.

    effective_config: shown unchanged, so its secrets must be redacted already. watch, feed: their `keep` and `run`
    must run beside it. listen, token: as in `[http]`. more: routes beside the pages.
    """
    page = Page()
    pages = _Pages(pipeline, registry, effective_config, watch, feed, page)
    answers: dict[str, Callable[[Request], Response]] = {
        "/": pages.page,
        "/metrics": pages.metrics,
        "/livez": pages.livez,
        "/readyz": pages.readyz,
        "/healthz": pages.healthz,
        "/status": pages.status,
        "/config": pages.config,
        "/events": pages.events,
        **dict.fromkeys(page.assets, pages.asset),
    }
    guard = Middleware(Guard, open_paths=(*OPEN, *page.assets), token=token, host=parse_address(listen)[0])
    app = Starlette(
        routes=[*(Route(path, _on_the_event_loop(answer), methods=["GET"]) for path, answer in answers.items()), *more],
        middleware=[guard],
        exception_handlers={HTTPException: _refused},
    )
    # `/status/` is an unknown path like any other, with an answer that lists the pages.
    app.router.redirect_slashes = False
    return app


class _Pages:
    def __init__(
        self,
        pipeline: WatchedPipeline,
        registry: CollectorRegistry,
        config: Mapping[str, object],
        watch: Watch,
        feed: EventFeed,
        page: Page,
    ) -> None:
        self._pipeline, self._registry, self._config = pipeline, registry, config
        self._watch, self._feed, self._page = watch, feed, page

    def page(self, request: Request) -> Response:
        return HTMLResponse(self._page.render(self._watch.live_view.view()), headers=_PAGE_HEADERS)

    def asset(self, request: Request) -> Response:
        asset = self._page.assets[request.url.path]
        return Response(asset.content, headers={**_ASSET_HEADERS, "content-type": asset.content_type})

    def events(self, request: Request) -> Response:
        if not self._feed.has_room:
            problem = {"error": f"/events: found {FOLLOWERS_MAX} that follow already; allowed: no more; try later"}
            return json_answer(problem, 503, {"retry-after": "5"})
        return EventStream(self._feed)

    def metrics(self, request: Request) -> Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except (TypeError, ValueError):  # a version that is no number
            # A client with a broken Accept header still gets metrics, in the oldest format.
            encode, content_type = choose_encoder("")
        headers = {**HEADERS, "content-type": content_type}
        body = encode(self._registry)
        if gzip_accepted(request.headers.get("accept-encoding", "")):
            body = gzip.compress(body, compresslevel=1)
            headers["content-encoding"] = "gzip"
        return Response(body, headers=headers)

    def livez(self, request: Request) -> Response:
        stuck = self._pipeline.snapshot().stuck(STUCK_SECONDS)
        return _probe_answer([f"{driver}: stuck for more than {STUCK_SECONDS:.0f} s" for driver in stuck])

    def readyz(self, request: Request) -> Response:
        return _probe_answer(self._pipeline.snapshot().not_ready)

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
        return json_answer(health, 503 if stuck or not snapshot.is_ready else 200)

    def status(self, request: Request) -> Response:
        return json_answer(self._watch.status())

    def config(self, request: Request) -> Response:
        return json_answer(self._config)


def _on_the_event_loop(answer: Callable[[Request], Response]) -> Callable[[Request], Any]:
    """Return an endpoint that answers on the event loop."""

    # Starlette runs a plain function in a thread, where the pipeline's state must not be read.
    async def endpoint(request: Request) -> Response:
        response = answer(request)
        response.headers["date"] = formatdate(usegmt=True)
        return response

    return endpoint


def _probe_answer(reasons: list[str]) -> Response:
    text = "\n".join(reasons) if reasons else "ok"
    return PlainTextResponse(text + "\n", 503 if reasons else 200, headers=HEADERS)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = "POST" if request.url.path.startswith("/-/") else "GET, HEAD"
        problem = {"error": f"{request.url.path}: found {request.method}; allowed: {allowed}"}
    else:
        problem = {"error": f"{request.url.path}: no such page; allowed: {', '.join(PAGES)}"}
    return json_answer(problem, error.status_code, error.headers)
