"""Secrets that come as files: systemd's credentials, Docker's and Kubernetes' secrets.

Each is a file in the folder that CREDENTIALS_DIRECTORY names, read only when a config asks for it by its name.
"""

from collections.abc import Mapping
from pathlib import Path

CREDENTIAL_BYTES_MAX = 1 << 20


def read_credential(name: str, environ: Mapping[str, str]) -> str | None:
    """Return a credential without the newline it ends in, or None when there is none of that name.

    Raises OSError or ValueError when it is there and can't be read, or is no text.
    """
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return None
    try:
        with (Path(folder) / name).open("rb") as file:
            content = file.read(CREDENTIAL_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    if len(content) > CREDENTIAL_BYTES_MAX:
        raise ValueError(f"more than {CREDENTIAL_BYTES_MAX >> 20} MiB")
    try:
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError("no text in UTF-8") from None
