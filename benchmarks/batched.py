"""What `@batched` costs a call, beside a bare future of the event loop that somebody resolves.

All callers come at once, each in a task of its own, and are answered at once, so that overhead is all there is.
`direct` awaits an async function that waits for nothing; `future` is the least that waiting for another's answer costs.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median

import msgspec
import trio
from rich import box
from rich.console import Console
from rich.table import Table

from streambatch.embed.batched import batched

BATCH = 64


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds a call took in each round of a case."""

    loop: str
    case: str
    seconds: list[float]


@batched(max_records=BATCH, max_wait=0.005, max_pending=1 << 20)
async def doubled(rows: list[int]) -> list[int]:
    return [2 * row for row in rows]


async def double(row: int) -> int:
    return 2 * row


async def on_asyncio(case: str, callers: int) -> float:
    """Return the seconds that so many callers took."""
    if case != "future":
        return await _asyncio_tasks(doubled if case == "batched" else double, callers)
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[int]] = [loop.create_future() for _ in range(callers)]

    async def wait(row: int) -> int:
        if row == callers - 1:
            for number, future in enumerate(futures):
                future.set_result(2 * number)
        return await futures[row]

    return await _asyncio_tasks(wait, callers)


async def on_trio(case: str, callers: int) -> float:
    """Return the seconds that so many callers took; an event is what trio has for a future."""
    if case != "future":
        return await _trio_tasks(doubled if case == "batched" else double, callers)
    events = [trio.Event() for _ in range(callers)]

    async def wait(row: int) -> int:
        if row == 0:
            await trio.lowlevel.checkpoint()  # trio starts tasks in no order, so that the last one may be the first
            for event in events:
                event.set()
        await events[row].wait()
        return 2 * row

    return await _trio_tasks(wait, callers)


async def _asyncio_tasks(function: Callable[[int], Awaitable[int]], callers: int) -> float:
    async def call(row: int) -> None:
        if await function(row) != 2 * row:
            raise AssertionError(row)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for row in range(callers):
            tasks.create_task(call(row))
    return time.perf_counter() - started


async def _trio_tasks(function: Callable[[int], Awaitable[int]], callers: int) -> float:
    async def call(row: int) -> None:
        if await function(row) != 2 * row:
            raise AssertionError(row)

    started = time.perf_counter()
    async with trio.open_nursery() as tasks:
        for row in range(callers):
            tasks.start_soon(call, row)
    return time.perf_counter() - started


def measure(callers: int, rounds: int) -> list[Cost]:
    """Run every case on both event loops, in turn, so many times; the first round only warms up."""
    costs: dict[tuple[str, str], list[float]] = {
        (loop, case): [] for loop in ("asyncio", "trio") for case in ("direct", "future", "batched")
    }
    for _ in range(rounds + 1):
        for (loop, case), seconds in costs.items():
            took = asyncio.run(on_asyncio(case, callers)) if loop == "asyncio" else trio.run(on_trio, case, callers)
            seconds.append(took / callers)
    return [Cost(loop=loop, case=case, seconds=seconds[1:]) for (loop, case), seconds in costs.items()]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batched", description=__doc__)
    parser.add_argument("--callers", type=int, default=1000, metavar="N", help="callers at once")
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="times each case is run")
    parser.add_argument("--json", action="store_true", help="print every measurement as JSON")
    options = parser.parse_args()
    costs = measure(options.callers, options.rounds)
    if options.json:
        sys.stdout.buffer.write(msgspec.json.encode(costs) + b"\n")
    else:
        _show(costs, options.callers)
    return 0


def _show(costs: list[Cost], callers: int) -> None:
    table = Table(title=f"{callers:,} callers at once, batches of {BATCH}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("event loop")
    table.add_column("case")
    for column in ("best us/call", "median us/call", "median, over a future"):
        table.add_column(column, justify="right")
    for cost in costs:
        future = next(other for other in costs if (other.loop, other.case) == (cost.loop, "future"))
        over = (median(cost.seconds) - median(future.seconds)) * 1e6
        best, middle = min(cost.seconds) * 1e6, median(cost.seconds) * 1e6
        table.add_row(cost.loop, cost.case, f"{best:.2f}", f"{middle:.2f}", f"{over:+.2f}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
