"""Check the address of an admin port that a command is given."""

from urllib.parse import urlsplit

from streambatch.core.errors import ConfigError, ConfigProblem

_ALLOWED = "an http or https address with a host and a port of 1 to 65535, such as http://127.0.0.1:9464"


def base_of(url: str) -> str:
    """Return the base address of an admin port, from `host:port`, a base address, or the address of its status.

    Raises ConfigError for anything else.
    """
    base = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(base)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port above 65535 or in letters, half an IPv6 address
        is_address = False
    if not is_address:
        raise ConfigError([ConfigProblem("URL", repr(url), _ALLOWED)])
    return base.rstrip("/").removesuffix("/status").rstrip("/")
