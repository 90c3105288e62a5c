"""Answers of the admin port as all of them are: kept by nobody on the way, and taken for what they say they are."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer in JSON; of what JSON has no form for, the text."""
    body = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2) + b"\n"
    return Response(body, status, headers={**HEADERS, **(headers or {})}, media_type="application/json")
