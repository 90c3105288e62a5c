"""Takes secrets out of texts that were not made to be read by everybody, such as the errors of a client library.

Found by their form: user and password in an address, what an Authorization header holds, and what is assigned to a
name that says it is secret.
"""

from __future__ import annotations

import re

REDACTED = "***"
SECRET_WORDS = ("password", "passwd", "passphrase", "token", "secret", "key", "credential", "credentials")
# Up to the last @ before the path, since a password may hold one.
_USERINFO = re.compile(r"://[^/\s]+@")
_SCHEME = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{4,}", re.IGNORECASE)
# The word may end a longer name, as in `api_key`, but not another word, as in `monkey`.
_ASSIGNED = re.compile(
    rf"(?<![^\W_])({'|'.join(SECRET_WORDS)})(=|\"?\s*:\s*\"|\s*=\s*['\"])[^\s&;,'\"\]}})]+", re.IGNORECASE
)


def redacted(text: str) -> str:
    """Return a text without the secrets that show by their form."""
    text = _USERINFO.sub(f"://{REDACTED}@", text)
    text = _SCHEME.sub(rf"\1 {REDACTED}", text)
    return _ASSIGNED.sub(rf"\1\2{REDACTED}", text)


def looks_secret(name: str) -> bool:
    """Whether a key or variable holds a secret, by its name."""
    return not set(SECRET_WORDS).isdisjoint(name.lower().replace("-", "_").split("_"))
