"""What a scrape costs: time of the server and number of series, for one to ten sources.

The time is what `/metrics` takes on the event loop, where records wait for it: collecting, encoding and compressing.
"""

import argparse
import gzip
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import anyio
import msgspec
import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from rich import box
from rich.console import Console
from rich.table import Table

from streambatch import (
    LinearModel,
    MemorySource,
    Pipeline,
    RecordSchema,
)
from streambatch.connectors.memory.none import NoneSink
from streambatch.observe import Metrics, MetricsObserver

SOURCES = (1, 2, 10)
RECORDS = 20_000


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What scrapes of a pipeline with so many sources took, in seconds, and how large they are."""

    sources: int
    series: int
    size: int
    seconds: list[float]


def main() -> int:
    options = _parser().parse_args()
    costs = [anyio.run(_measure, sources, options.scrapes) for sources in SOURCES]
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(costs), indent=2) + b"\n")
    Console().print(_table(costs))
    return 0


async def _measure(sources: int, scrapes: int) -> Cost:
    """Scrape a pipeline that has scored what its sources had: every histogram is filled."""
    lines = [b'{"id": %d, "x": [%d, 1]}' % (number, number) for number in range(RECORDS // sources)]
    observer, registry = MetricsObserver(), CollectorRegistry()
    pipeline = Pipeline(
        sources=[MemorySource(lines, name=f"source_{number}") for number in range(sources)],
        record=RecordSchema(id="id", features="x", shape=(2,)),
        model=LinearModel(np.ones(2, np.float32), 0.0),
        sink=NoneSink(),
        observer=observer,
    )
    Metrics(registry).attach(pipeline, observer, model_format="linear")
    await pipeline.run()
    seconds = []
    for _ in range(scrapes):
        began = time.perf_counter()
        gzip.compress(generate_latest(registry), compresslevel=1)
        seconds.append(time.perf_counter() - began)
    text = generate_latest(registry)
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    return Cost(sources=sources, series=series, size=len(text), seconds=seconds)


def _table(costs: Sequence[Cost]) -> Table:
    table = Table(box=box.SIMPLE)
    for heading in ("sources", "series", "bytes", "median ms", "worst ms"):
        table.add_column(heading, justify="right")
    for cost in costs:
        middle, worst = median(cost.seconds) * 1e3, max(cost.seconds) * 1e3
        table.add_row(str(cost.sources), f"{cost.series:,}", f"{cost.size:,}", f"{middle:.2f}", f"{worst:.2f}")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scrape", description=__doc__)
    parser.add_argument("--scrapes", type=int, default=100, help="scrapes of each pipeline; default: 100")
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
