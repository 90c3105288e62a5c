"""Decide which requests to the admin port are answered.

Metrics and probes answer every client. Everything else needs the token, or a client on this machine. A path that is not
listed as open is closed. A page of another site in a browser on this machine gets no answer either: its requests name
another host (DNS rebinding) or another origin.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from streambatch.web.answers import HEADERS, json_answer

PAGE = "/"
"""The only path that takes a token in its query; a cookie replaces it at once."""
_SAFE = ("GET", "HEAD")
_NO_TOKEN = (
    "this address is not a loopback address and no token is set: set [http] token, or listen on 127.0.0.1; "
    "metrics and probes are open"
)
_WRONG_TOKEN = (
    "the token of [http] token is wanted here: send it as 'Authorization: Bearer TOKEN', or open /?token=TOKEN"
)


class AdminConnection(Protocol):
    """The connection of a request, as far as the Guard needs it."""

    @property
    def is_loopback(self) -> bool: ...


class Guard:
    """Middleware that passes allowed requests to `app` and answers the others: 403, or 401 if a token would help.

    token: the value of `[http] token`. host: the host in `[http] listen`, which requests may name.
    A request without `state.connection` counts as one from another machine.
    """

    def __init__(self, app: ASGIApp, *, open_paths: Collection[str], token: str | None, host: str) -> None:
        self._app, self._open, self._host = app, frozenset(open_paths), host.lower()
        self._token = token.encode() if token is not None else None
        # The cookie holds a digest, so that a browser's files don't hold the token itself.
        digest = hashlib.sha256(b"streambatch admin\0" + (self._token or b"")).hexdigest()
        # The name tells daemons with other tokens apart: cookies know a host's name and not its port.
        self._cookie, self._cookie_value = f"streambatch_{digest[:8]}", digest[8:]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = None if scope["path"] in self._open else self._answer(Request(scope))
        await (answer or self._app)(scope, receive, send)

    def _answer(self, request: Request) -> Response | None:
        """Return the answer that takes the place of the app's, or None to let the request through."""
        # Checked before the token: a page on another port of this host is the same site, so it can send the cookie.
        if (refusal := _foreign_origin(request)) is not None:
            return refusal
        if self._brings_token(request):
            return self._with_cookie() if _token_in_address(request) is not None else None
        listener: AdminConnection | None = request.scope.get("state", {}).get("connection")
        if listener is not None and listener.is_loopback:
            return self._foreign_host(request)
        if self._token is None:
            return _refused(403, _NO_TOKEN)
        return _refused(401, _WRONG_TOKEN, {"www-authenticate": "Bearer"})

    def _brings_token(self, request: Request) -> bool:
        if self._token is None:
            return False
        cookie = request.cookies.get(self._cookie)
        # Compared in constant time: the time of an answer must not tell how much of a token was right.
        if cookie is not None and hmac.compare_digest(cookie.encode(), self._cookie_value.encode()):
            return True
        scheme, _, sent = request.headers.get("authorization", "").partition(" ")
        found = sent.strip() if scheme.lower() == "bearer" else _token_in_address(request)
        return found is not None and hmac.compare_digest(found.encode(), self._token)

    def _with_cookie(self) -> Response:
        """Redirect the browser to the page without the token, which would stay in its address bar and history."""
        response = Response(status_code=303, headers={**HEADERS, "location": PAGE})
        response.headers["referrer-policy"] = "no-referrer"
        response.set_cookie(self._cookie, self._cookie_value, httponly=True, samesite="strict")
        return response

    def _foreign_host(self, request: Request) -> Response | None:
        asked = request.headers.get("host")
        host = _host_of(asked) if asked is not None else "localhost"  # HTTP/1.0: no browser
        if host == self._host or _is_local(host):
            return None
        return _refused(403, f"Host: found {asked}; allowed: localhost or a loopback address, as this port is local")


def _foreign_origin(request: Request) -> Response | None:
    """Return a refusal of a request that a page of another origin made the browser send, cookies included."""
    origin = request.headers.get("origin")
    if request.method in _SAFE or origin is None or origin.partition("://")[2] == request.headers.get("host"):
        return None
    return _refused(403, f"Origin: found {origin}; allowed: this port's own page")


def _token_in_address(request: Request) -> str | None:
    if request.scope["path"] != PAGE or request.method not in _SAFE:
        return None
    values = parse_qs(request.scope["query_string"].decode("latin-1")).get("token")
    return values[-1] if values else None


def _host_of(host: str) -> str:
    """Return the name or address in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_local(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _refused(status: int, error: str, headers: dict[str, str] | None = None) -> Response:
    return json_answer({"error": error}, status, headers)
