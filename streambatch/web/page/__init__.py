"""The live page: an HTML page, a style sheet and a script, all served from here.

The server renders every figure, for the first answer and for each second after it. The script only puts them in place,
so the page shows the same without JavaScript.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

from streambatch.web.page.shown import shown

_PLACE = re.compile(r"\{\{(\w+)\}\}")
_TYPES = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The content security policy: a browser may load files from this port only."""


class Asset(NamedTuple):
    """A file of the page. Its address holds a hash of its content, so that browsers may cache it for ever."""

    content: bytes
    content_type: str


class Page:
    """Renders the page. assets: its files by path."""

    def __init__(self) -> None:
        folder = files(__name__)
        self.assets: dict[str, Asset] = {}
        addresses = {}
        for name, content_type in _TYPES.items():
            content = folder.joinpath(name).read_bytes()
            stem, _, ending = name.rpartition(".")
            addresses[f"{stem}_{ending}"] = path = f"/{stem}.{sha256(content).hexdigest()[:12]}.{ending}"
            self.assets[path] = Asset(content, content_type)
        html = folder.joinpath("page.html").read_text("utf-8")
        self._html = _PLACE.sub(lambda place: addresses.get(place[1], place[0]), html)

    def render(self, view: Mapping[str, Any]) -> str:
        """Return the page for a view."""
        places = shown(view)
        values = places["html"] | {f"tone_{name}": escape(tone) for name, tone in places["tone"].items()}
        return _PLACE.sub(lambda place: values[place[1]], self._html)
