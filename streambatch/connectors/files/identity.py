"""The identity of a file, whatever its name is: a digest of its first bytes, of which there may be more later."""

from hashlib import blake2b
from typing import NamedTuple

HEAD_BYTES = 4 << 10
"""How many first bytes identify a file."""


class Identity(NamedTuple):
    """The digest of a file's first `length` bytes, which grow with the file up to HEAD_BYTES."""

    length: int
    digest: bytes

    def fits(self, head: bytes) -> bool:
        """Whether a file with these first bytes can be this one."""
        return identity_of(head[: self.length]) == self


def identity_of(head: bytes) -> Identity:
    """Return the identity of a file with these first bytes."""
    return Identity(len(head), blake2b(head, digest_size=16).digest())


# Of no byte, so that it fits any file.
NOTHING_KNOWN = identity_of(b"")
