"""A process that appends numbered records to a log and rotates it by rename, until its stdin ends.

    python -m tests.faults.writer FOLDER SEED RECORDS_PER_SECOND RECORDS_PER_FILE

`FOLDER/log.jsonl` becomes `log-000001.jsonl` and so on. Each file is a stream of its own, `f0`, `f1` and so on, as
order is promised within a file. Writes are torn at random places. At its end it prints how many records each stream
has.
"""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tests.faults.records import lines

STEP_SECONDS = 0.02


class Writer:
    """The process, entered while it runs; `counts` tells what it wrote once it was stopped."""

    def __init__(self, folder: Path, *, seed: int, per_second: int = 2000, per_file: int = 3000) -> None:
        self.counts: dict[str, int] = {}
        self._options = [str(folder), *map(str, (seed, per_second, per_file))]

    def __enter__(self) -> Writer:
        command = [sys.executable, "-m", "tests.faults.writer", *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Have it write its last record to the end, and wait for that."""
        if self._process.returncode is None:
            self.counts = json.loads(self._process.communicate(timeout=30)[0])


def main() -> None:
    folder, seed, per_second, per_file = Path(sys.argv[1]), *map(int, sys.argv[2:])
    chance, path, counts = random.Random(seed), folder / "log.jsonl", [0]
    log = _opened(path)
    while not select.select([sys.stdin], [], [], STEP_SECONDS * chance.uniform(0, 2))[0]:
        count = min(chance.randint(0, int(2 * per_second * STEP_SECONDS)), per_file - counts[-1])
        _torn(log, lines(f"f{len(counts) - 1}", counts[-1], counts[-1] + count), chance)
        counts[-1] += count
        if counts[-1] == per_file:
            os.rename(path, folder / f"log-{len(counts):06}.jsonl")
            os.close(log)
            if chance.random() < 0.3:  # the new file isn't always there at once
                time.sleep(chance.uniform(0, 0.3))
            log = _opened(path)
            counts.append(0)
    os.close(log)
    print(json.dumps({f"f{number}": count for number, count in enumerate(counts)}))


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


def _torn(fd: int, data: bytes, chance: random.Random) -> None:
    while data:
        size = chance.randint(1, max(1, len(data)))
        os.write(fd, data[:size])
        data = data[size:]


if __name__ == "__main__":
    main()
