"""Routes that change a running daemon: `POST /-/reload`. Served if `[http] lifecycle` is on, behind the Guard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streambatch.ops.reloading import ReloadResult
from streambatch.web.answers import json_answer

RELOAD = "/-/reload"


def lifecycle_routes(reload: Callable[[], Awaitable[ReloadResult | None]]) -> list[Route]:
    """Return the routes. reload: returns None while another reload is at work."""

    async def answer(request: Request) -> Response:
        result = await reload()
        if result is None:
            return json_answer({"error": f"{RELOAD}: another reload is at work; try again when it is done"}, 409)
        if not result.ok:
            return json_answer({"error": f"{RELOAD}: nothing was changed", "problems": list(result.problems)}, 400)
        return json_answer(
            {
                "changes": [{"key": key, "from": before, "to": after} for key, before, after in result.changes],
                "config_digest": result.config_digest,
                "model": {"replaced": result.model, "digest": result.model_digest},
                "seconds": round(result.seconds, 3),
            }
        )

    return [Route(RELOAD, answer, methods=["POST"])]
