"""What poison records cost: calls of the model and time, for none, one, 1 % and 10 % of a batch.

The transform scores batches of 512 records, of which some make the model raise; those are found by halving. A call of
the model costs `--call-us` besides what the linear model takes, since a model whose calls are dear is hit hardest.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.feed import BIAS, FEATURES, MEAN, SCALE, WEIGHTS
from streambatch import (
    LinearModel,
    MemorySource,
    RecordSchema,
    Standardize,
)
from streambatch.core.batches import Batch, Stamps
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.outcomes import Outcome
from streambatch.core.wrapping import as_source
from streambatch.core.wrapping_scoring import WrappedModel
from streambatch.scoring.factory import encoder_for, transform_for

BATCH = 512
CASES = {"none": 0, "one": 1, "1 %": round(BATCH / 100), "10 %": round(BATCH / 10)}
"""Poison records of a batch."""
_POISON = 1e6


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of the model and seconds that each batch of a case took."""

    case: str
    poison: int
    calls: list[int]
    seconds: list[float]


class Picky:
    """The linear model, but for records whose first feature is far from all others."""

    name = "picky"

    def __init__(self, call_seconds: float) -> None:
        self.calls, self._call_seconds = 0, call_seconds
        self._linear = LinearModel(WEIGHTS, BIAS)

    def score(self, x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
        self.calls += 1
        until = time.perf_counter() + self._call_seconds
        while time.perf_counter() < until:
            pass
        if (x[:, 0] > _POISON / 2).any():
            raise ValueError("poison")
        return self._linear.score(x)


def main() -> int:
    """Print a table, or JSON. Returns 1 when a record was lost, or died that was not poison."""
    options = _parser().parse_args()
    try:
        costs = measure(options.rounds, options.call_us / 1e6)
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        sys.stdout.buffer.write(msgspec.json.encode(costs) + b"\n")
    else:
        _show(costs)
    return 0


def measure(rounds: int, call_seconds: float) -> list[Cost]:
    """Score so many batches of each case, in turn; the places of the poison are drawn anew for each."""
    model = Picky(call_seconds)
    schema = RecordSchema(id="id", features="features", shape=(FEATURES,))
    sources = [as_source(MemorySource([]))]
    steps, encoder = [Standardize(MEAN, SCALE)], encoder_for("jsonl", schema)
    transform = transform_for(sources, schema, steps, WrappedModel(model), encoder)
    random = np.random.default_rng(1)
    calls: dict[str, list[int]] = {case: [] for case in CASES}
    seconds: dict[str, list[float]] = {case: [] for case in CASES}
    for turn in range(rounds + 1):
        for case, poison in CASES.items():
            batch, places = _batch(random, sources[0].name, poison, turn + 1)
            model.calls, started = 0, time.perf_counter()
            outcome = transform.run(batch, time.perf_counter)
            if turn:  # the first only warms up
                seconds[case].append(time.perf_counter() - started)
                calls[case].append(model.calls)
            _check(outcome, places)
    return [Cost(case=case, poison=poison, calls=calls[case], seconds=seconds[case]) for case, poison in CASES.items()]


def _batch(random: np.random.Generator, source: str, poison: int, sequence: int) -> tuple[Batch, list[int]]:
    x = random.normal(MEAN, SCALE, (BATCH, FEATURES))
    places = sorted(random.choice(BATCH, poison, replace=False).tolist())
    x[places, 0] = _POISON * abs(SCALE[0]) + MEAN[0]
    lines = [msgspec.json.encode({"id": at, "features": row}) + b"\n" for at, row in enumerate(x.tolist())]
    payload, ends = b"".join(lines), np.cumsum(list(map(len, lines)))
    chunk = Chunk(Partition(source, "a"), payload, ends, 0, 0.0)
    return Batch(sequence, [chunk], BATCH, len(payload), "size", Stamps(0.0, 0.0)), places


def _check(outcome: Outcome, places: Sequence[int]) -> None:
    dead = [reject.index for reject in outcome.rejects]
    if dead != list(places) or sum(outcome.scored.values()) != BATCH - len(places):
        raise AssertionError(f"expected records {places} to die and all others to be scored; {dead} died")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.poison", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="batches of each case")
    parser.add_argument("--call-us", type=float, default=0.0, metavar="US", help="what a call costs besides")
    parser.add_argument("--json", action="store_true", help="print every measurement as JSON")
    return parser


def _show(costs: Sequence[Cost]) -> None:
    title = f"batches of {BATCH} records, through the transform"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("poison")
    for column in ("records", "median calls", "most calls", "median ms", "times as long"):
        table.add_column(column, justify="right")
    clean = median(costs[0].seconds)
    for cost in costs:
        middle = median(cost.seconds)
        table.add_row(
            cost.case,
            str(cost.poison),
            f"{median(cost.calls):.0f}",
            str(max(cost.calls)),
            f"{middle * 1e3:.2f}",
            f"{middle / clean:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
