"""Answers of the admin port as all of them are: kept by nobody on the way, and taken for what they say they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from streambatch.core.text import encodable

HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer in JSON: of what JSON has no form for, the text, and every text as `encodable` writes it."""
    shown = _encodable(msgspec.to_builtins(value, enc_hook=str))
    body = msgspec.json.format(msgspec.json.encode(shown), indent=2) + b"\n"
    return Response(body, status, headers={**HEADERS, **(headers or {})}, media_type="application/json")


def _encodable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_encodable(key): _encodable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(inner) for inner in value]
    return encodable(value) if isinstance(value, str) else value
