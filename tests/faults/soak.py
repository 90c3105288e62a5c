"""Besiege daemons for a long time, and tell the figures.

    python -m tests.faults.soak --cycles 1000 [--seed N] [--per-state 50]

A state lives for so many cycles; the next has another kind of output. What failed keeps its folder. Exit code 0: not
one record was lost, doubled or out of order, and every audit agreed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.nursery import Nursery
from tests.faults.siege import SHAPES, Result, Siege


def main() -> int:
    options = _options()
    print(f"seed {options.seed}: {options.cycles} cycles, {options.per_state} for each state", flush=True)
    started, done, is_exact = time.monotonic(), list[Result](), True
    shapes = list(SHAPES)
    with Nursery() as nursery:
        while (left := options.cycles - sum(each.cycles for each in done)) > 0:
            shape, seed = shapes[len(done) % len(shapes)], options.seed + len(done)
            folder = Path(tempfile.mkdtemp(prefix=f"soak-{seed}-{shape}-"))
            result = Siege(folder, nursery, shape=shape, seed=seed).run(min(left, options.per_state))
            done.append(result)
            print(f"{shape}, seed {seed}, {result.cycles} cycles: {result.figures}", flush=True)
            if result.is_exact:
                shutil.rmtree(folder)
            else:
                is_exact = False
                print(f"  FAILED, see {folder}", *result.problems, sep="\n  ", flush=True)
    print(_summary(done, time.monotonic() - started), flush=True)
    return 0 if is_exact else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--per-state", type=int, default=50)
    return parser.parse_args()


def _summary(done: list[Result], seconds: float) -> str:
    figures = [each.figures for each in done]
    return (
        f"{sum(each.cycles for each in done)} cycles, {sum(each.records for each in figures)} records: "
        f"{sum(each.lost for each in figures)} lost, {sum(each.doubled for each in figures)} doubled, "
        f"{sum(each.out_of_order for each in figures)} out of order, {sum(each.wrong for each in figures)} wrong; "
        f"{sum(each.audits_failed for each in done)} of {sum(each.audits for each in done)} audits failed; "
        f"{sum(len(each.problems) for each in done)} problems; {seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
