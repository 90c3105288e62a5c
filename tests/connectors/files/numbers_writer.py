"""Append numbered lines to a file in torn writes, and rotate it by rename: TARGET LINES LINES_PER_FILE [deepest].

With `deepest`, older files move up by one as far as TARGET.<deepest>; without, each gets a name of its own.
"""

import os
import sys


def main() -> None:
    target, lines, per_file = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    deepest = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    for number, start in enumerate(range(0, lines, per_file)):
        if start:
            rotate(target, number, deepest)
        raw = b"".join(b'{"id":%d}\n' % i for i in range(start, min(lines, start + per_file)))
        with open(target, "ab", buffering=0) as out:
            for at in range(0, len(raw), 997):
                out.write(raw[at : at + 997])


def rotate(target: str, number: int, deepest: int) -> None:
    if not deepest:
        return os.rename(target, f"{target}.{number}")
    for depth in range(min(number, deepest) - 1, 0, -1):
        os.rename(f"{target}.{depth}", f"{target}.{depth + 1}")
    os.rename(target, f"{target}.1")


if __name__ == "__main__":
    main()
