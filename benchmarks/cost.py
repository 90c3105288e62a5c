"""What an option costs: the same records with and without it, in turns, in one process.

Where a few percent are to be told from noise, two processes won't do: each has its own luck with memory and caches, and
a machine is never equally busy for long. Neighbours in time, in one process, share both; the median over many pairs
says what is left.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.cases import CASES, COMPARISONS, Comparison
from benchmarks.feed import feed, folder
from benchmarks.streambatch_runs import run

OPTIONS = ("exactly-once", "metrics", "drift")
SAMPLES = 2_000
"""Draws from the pairs, for the range in which the median is with 95 %."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """How many times as fast a case was as its neighbour in time without the option, by pair."""

    case: str
    against: str
    at_least: float
    wall: list[float]
    cpu: list[float]
    """By the CPU time of all threads."""


def main() -> int:
    """Return 0; a ratio that is missed is shown and is no failure."""
    options = _parser().parse_args()
    source = feed(options.records)
    wanted = [each for each in COMPARISONS if each.case in _cases(options.option or OPTIONS)]
    costs = [_measure(each, source, options.pairs) for each in wanted]
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(costs)) + b"\n")
    Console(width=None if sys.stdout.isatty() else 120).print(_table(costs, options.records))
    return 0


def _cases(options: Sequence[str]) -> list[str]:
    return [f"{executor}-512-{option}" for option in options for executor in ("inline", "thread")]


def _measure(comparison: Comparison, source: Path, pairs: int) -> Cost:
    target = folder() / "scores-cost.jsonl"
    call: Callable[..., None] = run
    own, other = (
        partial(call, source, target, **CASES[name].options) for name in (comparison.case, comparison.against)
    )
    for warm_up in (own, other):
        _took(warm_up)
    took = []
    for pair in track(range(pairs), comparison.case, console=Console(stderr=True), transient=True):
        order = (own, other) if pair % 2 else (other, own)
        times = {call: _took(call) for call in order}
        took.append((times[other], times[own]))
    target.unlink()
    wall, cpu = ([without[at] / with_it[at] for without, with_it in took] for at in (0, 1))
    return Cost(case=comparison.case, against=comparison.against, at_least=comparison.at_least, wall=wall, cpu=cpu)


def _took(call: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds that a call took, by the clock and by the CPU."""
    gc.collect()
    gc.freeze()  # as the daemon does
    cpu, started = time.process_time(), time.perf_counter()
    call()
    return time.perf_counter() - started, time.process_time() - cpu


def _table(costs: Sequence[Cost], records: int) -> Table:
    title = f"times as fast, {records:,} records a run"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("case", "pairs", "median", "95 %", "by CPU", "95 %", "wanted", "reached"):
        table.add_column(column, justify="left" if column == "case" else "right", no_wrap=True)
    for cost in costs:
        table.add_row(
            f"{cost.case} : {cost.against}",
            str(len(cost.wall)),
            *(text for ratios in (cost.wall, cost.cpu) for text in (f"{median(ratios):.3f}", _range(ratios))),
            f"{cost.at_least:.2f}",
            "yes" if median(cost.wall) >= cost.at_least else "no",
        )
    return table


def _range(ratios: Sequence[float]) -> str:
    """Return where the median is with 95 %, by resampling the pairs."""
    drawn = np.random.default_rng(1).choice(ratios, (SAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return f"{low:.3f}-{high:.3f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__)
    parser.add_argument("--option", action="append", choices=OPTIONS, help="this one; may be repeated")
    parser.add_argument(
        "--records", type=int, default=200_000, metavar="N", help="records in the feed; default 200,000"
    )
    parser.add_argument("--pairs", type=int, default=30, metavar="N", help="runs with and without")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every ratio there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
