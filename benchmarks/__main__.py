"""Runs the cases in turn, several rounds of it, checks that all wrote the same scores, and prints the ratios."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.cases import CASES, COMPARISONS, CaseError, Comparison, Measurement, measure
from benchmarks.feed import feed, folder
from benchmarks.scores import check


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """How many times as fast a case was."""

    comparison: Comparison
    best: float
    """The best run of each."""
    median: float
    """Of the ratios within each round."""
    cpu: float
    """By the least CPU time for a record, which a busy machine disturbs less."""
    reached: bool


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All of one run of the benchmarks."""

    records: int
    python: str
    machine: str
    cpus: int
    measurements: list[Measurement]
    ratios: list[Ratio]


def main() -> int:
    """Return 1 when a case failed or wrote wrong scores; a ratio that is missed is shown and is no failure."""
    options = _parser().parse_args()
    try:
        measurements = _measure_all(_with_baselines(options.case), options.records, options.rounds)
    except CaseError as error:
        print(error, file=sys.stderr)
        return 1
    result = Result(
        records=options.records,
        python=platform.python_version(),
        machine=platform.machine(),
        cpus=len(os.sched_getaffinity(0)),
        measurements=measurements,
        ratios=_ratios(measurements, options.records),
    )
    _show(result)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--records", type=_count, default=1_000_000, metavar="N", help="records in the feed")
    parser.add_argument("--rounds", type=_count, default=5, metavar="N", help="runs of each case, taken in turn")
    parser.add_argument(
        "--case", action="append", choices=CASES, help="this one and what it is measured against; may be repeated"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement and ratio there")
    return parser


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _with_baselines(asked: Sequence[str] | None) -> list[str]:
    if asked is None:
        return list(CASES)
    wanted = {*asked, *(comparison.against for comparison in COMPARISONS if comparison.case in asked)}
    return [name for name in CASES if name in wanted]


def _measure_all(names: Sequence[str], records: int, rounds: int) -> list[Measurement]:
    """Measure each case once a round, every other round backwards."""
    turns = [name for turn in range(rounds) for name in (names if turn % 2 == 0 else reversed(names))]
    return [
        _measure(name, records)
        for name in track(turns, "measuring", console=Console(stderr=True), transient=True, refresh_per_second=1)
    ]


def _measure(name: str, records: int) -> Measurement:
    count = min(records, CASES[name].records_max or records)
    source, target = feed(count), folder() / f"scores-{os.getpid()}.jsonl"
    try:
        measurement = measure(name, count, source, target)
        check(source, target)
    except CaseError as error:
        raise CaseError(f"{name}: {error}") from None
    finally:
        target.unlink(missing_ok=True)
    return measurement


def _ratios(measurements: Sequence[Measurement], records: int) -> list[Ratio]:
    ratios = []
    for comparison in COMPARISONS:
        own, other = ([m for m in measurements if m.case == name] for name in (comparison.case, comparison.against))
        if own and other:
            ours, theirs = (
                [m.seconds_for(records, whole_process=comparison.whole_process) for m in runs] for runs in (own, other)
            )
            best = min(theirs) / min(ours)
            ratio = Ratio(
                comparison=comparison,
                best=best,
                median=median(their / our for their, our in zip(theirs, ours, strict=True)),
                cpu=_cpu_per_record(other) / _cpu_per_record(own),
                reached=best >= comparison.at_least,
            )
            ratios.append(ratio)
    return ratios


def _cpu_per_record(runs: Sequence[Measurement]) -> float:
    return min(m.cpu_seconds / m.records for m in runs)


def _show(result: Result) -> None:
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(_cases_table(result))
    if result.ratios:
        console.print(_ratios_table(result))


def _cases_table(result: Result) -> Table:
    title = f"{result.records:,} records, {result.cpus} CPUs, Python {result.python}"
    table = _table(title, "case", ["records", "best/s", "median/s", "CPU us", "process s", "RSS MiB"])
    for name in CASES:
        if runs := [m for m in result.measurements if m.case == name]:
            table.add_row(
                name,
                f"{runs[0].records:,}",
                f"{max(m.records / m.seconds for m in runs):,.0f}",
                f"{median(m.records / m.seconds for m in runs):,.0f}",
                f"{_cpu_per_record(runs) * 1e6:.3g}",
                f"{min(m.process_seconds for m in runs):.2f}",
                f"{max(m.rss_bytes for m in runs) / (1 << 20):.0f}",
            )
    return table


def _ratios_table(result: Result) -> Table:
    table = _table("times as fast", "case", ["against", "best", "median", "by CPU", "wanted", "reached"])
    for ratio in result.ratios:
        comparison = ratio.comparison
        table.add_row(
            f"{comparison.case}, process" if comparison.whole_process else comparison.case,
            comparison.against,
            f"{ratio.best:.2f}",
            f"{ratio.median:.2f}",
            f"{ratio.cpu:.2f}",
            f"{comparison.at_least:.2f}",
            "yes" if ratio.reached else "no",
        )
    if any(m.records < result.records for m in result.measurements):
        table.caption = f"A case with fewer records is scaled per record to {result.records:,}."
        table.caption_justify = "left"
    return table


def _table(title: str, first: str, numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


if __name__ == "__main__":
    sys.exit(main())
