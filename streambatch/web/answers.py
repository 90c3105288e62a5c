"""JSON answers of the admin port, with the headers that all its answers carry: not cached, type not guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from streambatch.core.text import encodable

HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a value as a JSON answer. Values without a JSON form become their text; texts are made `encodable`."""
    shown = _encodable(msgspec.to_builtins(value, enc_hook=str))
    body = msgspec.json.format(msgspec.json.encode(shown), indent=2) + b"\n"
    return Response(body, status, headers={**HEADERS, **(headers or {})}, media_type="application/json")


def _encodable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_encodable(key): _encodable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(inner) for inner in value]
    return encodable(value) if isinstance(value, str) else value
