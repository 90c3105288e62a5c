"""What tells one file from another whatever it is called: the digest of its first bytes, which may still grow."""

from hashlib import blake2b
from typing import NamedTuple

HEAD_BYTES = 4 << 10
"""How much of a file's beginning tells it from others."""


class Identity(NamedTuple):
    """The digest of a file's first `length` bytes, which grow with the file up to HEAD_BYTES."""

    length: int
    digest: bytes

    def fits(self, head: bytes) -> bool:
        """Tell whether a file that begins like this can be the one."""
        return identity_of(head[: self.length]) == self


def identity_of(head: bytes) -> Identity:
    """Return the identity of a file with these first bytes."""
    return Identity(len(head), blake2b(head, digest_size=16).digest())


NOTHING_KNOWN = identity_of(b"")
