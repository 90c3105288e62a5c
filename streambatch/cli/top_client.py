"""Fetch the status of daemons, each on a thread of its own, so that one that hangs doesn't delay the others.

A token is sent to the given address only: redirects are not followed and proxies are not used.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from streambatch.cli.admin_url import base_of
from streambatch.core.errors import StreambatchError
from streambatch.ops.live_view import LiveView, View

TIMEOUT_SECONDS = 3.0
STATUS_BYTES_MAX = 8 << 20


class UnreachableError(StreambatchError):
    """A daemon's status can't be fetched. Names the reason and, if there is one, the remedy."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)


def fetch(base: str, token: str | None) -> dict[str, Any]:
    """Return a daemon's status. Blocks for at most TIMEOUT_SECONDS per step. Raises UnreachableError."""
    request = urllib.request.Request(f"{base}/status", headers={"Accept": "application/json"})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with _OPENER.open(request, timeout=TIMEOUT_SECONDS) as answer:
            status = json.loads(answer.read(STATUS_BYTES_MAX))
    except urllib.error.HTTPError as error:
        with error:
            raise UnreachableError(_refusal(error.code)) from None
    except urllib.error.URLError as error:
        raise UnreachableError(_reason(error.reason)) from None
    except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
        raise UnreachableError(_reason(error)) from None
    # Another server may answer on this port, or an older daemon whose status has no such keys.
    if not isinstance(status, dict) or not {"run", "busy_seconds", "settings"} <= status.keys():
        raise UnreachableError("it answers, but not as a streambatch daemon of this version does")
    return status


class Watcher:
    """The view of one daemon. Call `look` once, or `start` to look every few seconds until the process ends."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url, self._token = base_of(url), token
        self._live_view, self._lock = LiveView(), threading.Lock()

    def look(self) -> None:
        """Fetch one status, and add it to the view."""
        try:
            status = fetch(self.url, self._token)
        except UnreachableError as error:
            # The view is read by the thread that draws.
            with self._lock:
                self._live_view.lost(str(error), time.time())
            return
        with self._lock:
            self._live_view.update(status, time.time())

    def start(self, seconds: float) -> None:
        """Look every `seconds`, on a thread."""
        threading.Thread(target=self._keep_looking, args=(seconds,), name=f"watch {self.url}", daemon=True).start()

    def view(self) -> View:
        """Return the view, with the daemon's `url`; see ops/live_view.py."""
        with self._lock:
            return {"url": self.url, **self._live_view.view()}

    def _keep_looking(self, seconds: float) -> None:
        while True:
            due = time.monotonic() + seconds
            self.look()
            time.sleep(max(0.0, due - time.monotonic()))  # nothing wakes this thread: it ends with the process


def _refusal(code: int) -> str:
    if code in (401, 403):
        return f"it wants another token (answered {code}): give --token or STREAMBATCH_TOKEN"
    return f"it answered {code} where a status was expected: is this the admin port?"


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_SECONDS:.0f} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"no status came: {error}"
