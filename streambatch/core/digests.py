"""The pin of a file: the digest that it must have before it is loaded."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from streambatch.core.errors import ModelError


def _check_sha256(text: str) -> str:
    if re.fullmatch(r"[0-9a-fA-F]{64}", text) is None:
        raise ValueError("a sha256 of 64 hexadecimal digits")
    # hashlib writes digests in lower case, and they are compared as text.
    return text.lower()


Sha256 = Annotated[str, AfterValidator(_check_sha256)]
"""The pin of a file: 64 hexadecimal digits."""


def check_digest(model: str, path: object, found: str, pinned: str | None) -> None:
    """Raise ModelError, giving both digests, when a file is not the one that was pinned."""
    if pinned is not None and found != pinned:
        raise ModelError(model, f"{path}: expected sha256 {pinned}, found {found}")
