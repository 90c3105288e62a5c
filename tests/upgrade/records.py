"""The records that are scored before and after a change of versions.

All numbers are small multiples of powers of two, and so are the weights: sums of them are exact in any order, so that
scores have the same bits on any machine.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

WEIGHTS, BIAS = (0.5, 2.0), 0.25


def features(number: int) -> list[float]:
    """Return the features of a record; one in thirteen lacks the second, so that the record can't be scored."""
    x = [number % 17 / 4, number * number % 23 / 8]
    return x[:1] if number % 13 == 5 else x


def lines(first: int, count: int) -> list[bytes]:
    """Return records as JSON without line ends. Some of those that can't be scored are no JSON or no UTF-8."""
    return [_line(number) for number in range(first, first + count)]


def _line(number: int) -> bytes:
    if number % 29 == 7:
        return b'{"id": %d, "x": [0.5, ' % number
    if number % 31 == 9:
        return b'{"id": "\xff%d", "x": [0.5, 0.25]}' % number
    return json.dumps({"id": number, "x": features(number)}).encode()


def rows(first: int, count: int) -> list[bytes]:
    """Return records as rows of CSV with the columns id, a and b, without line ends."""
    return [
        b"%d,%s" % (number, ",".join(str(each) for each in [*features(number), ""][:2]).encode())
        for number in range(first, first + count)
    ]


def ended(records: Sequence[bytes]) -> bytes:
    """Return records as lines."""
    return b"".join(record + b"\n" for record in records)


def prefixed(records: Sequence[bytes]) -> bytes:
    """Return records, each after its length."""
    return b"".join(struct.pack(">I", len(record)) + record for record in records)
