"""Append the rows of a CSV file to another, torn lines included, and rotate that by rename a few times on the way.

Each row gets its newline, the last one too: without it a followed file's last line is no record yet.
"""

import os
import sys
import time

SOURCE, TARGET, FILES = sys.argv[1], sys.argv[2], int(sys.argv[3])
TORN = 501
"""Bytes a write: no multiple of any line's length, so that most writes end within a line."""


def main() -> None:
    with open(SOURCE, "rb") as file:
        header, *rows = [line + b"\n" for line in file.read().splitlines()]
    size = len(rows) // FILES + 1
    for number in range(FILES):
        if number:
            os.rename(TARGET, f"{TARGET}.{number}")
        raw = header + b"".join(rows[number * size : (number + 1) * size])
        with open(TARGET, "ab", buffering=0) as out:
            for start in range(0, len(raw), TORN):
                out.write(raw[start : start + TORN])
                if start % (TORN * 50) == 0:
                    time.sleep(0.005)  # so that it is read while it grows


if __name__ == "__main__":
    main()
