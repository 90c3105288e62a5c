"""Read secrets that are passed as files: systemd credentials, Docker and Kubernetes secrets.

Each is a file in the folder that CREDENTIALS_DIRECTORY names. It is read only if a config refers to its name.
"""

from collections.abc import Mapping
from pathlib import Path

CREDENTIAL_BYTES_MAX = 1 << 20


def read_credential(name: str, environ: Mapping[str, str]) -> str | None:
    """Return a credential without its final newline, or None if there is none of that name.

    Raises OSError or ValueError if the file exists and can't be read, or is not text.
    """
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return None
    try:
        with (Path(folder) / name).open("rb") as file:
            # One byte more than allowed tells a file that is too large, whatever its size.
            content = file.read(CREDENTIAL_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    if len(content) > CREDENTIAL_BYTES_MAX:
        raise ValueError(f"more than {CREDENTIAL_BYTES_MAX >> 20} MiB")
    try:
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError("no text in UTF-8") from None
