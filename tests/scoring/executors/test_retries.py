"""Errors that pass, and time limits of async models: on the event loop, in virtual time."""

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.core.errors import ModelError, RetryableError
from streambatch.core.types import FloatArray
from streambatch.testing import run_in_virtual_time
from streambatch.testing.virtual_time import LoopClock
from tests.scoring.desk import Desk
from tests.scoring.fakes import Doubling, transform_of

pytestmark = pytest.mark.anyio
virtual_time = pytest.mark.virtual_time


class Scripted(Doubling):
    """Calls fail as the script says, one after the other: `away`, `hangs` for 100 s, `poison` for more than one row."""

    def __init__(self, script: list[str], poison: set[float] = frozenset()) -> None:  # type: ignore[assignment]
        super().__init__(*poison)
        self.faults = iter(script)
        self.called_at: list[float] = []

    def fault(self, x: FloatArray) -> str:
        self.called_at.append(anyio.current_time())
        fault = next(self.faults, "ok")
        if fault == "away":
            raise RetryableError("backend is away")
        if fault == "poison" and len(x) > 1:
            raise ValueError("too many")
        return fault

    def score(self, x: FloatArray) -> FloatArray:
        self.fault(x)
        return super().score(x)


class ScriptedAsync(Scripted):
    """The same; each call takes 1 s."""

    is_async = True

    async def score(self, x: FloatArray) -> FloatArray:  # type: ignore[override]
        fault = self.fault(x)
        await anyio.sleep(100 if fault == "hangs" else 1)
        return Doubling.score(self, x)


def desk_of(model: Any, **options: Any) -> Desk:
    return Desk(transform_of(model), now=LoopClock().monotonic, executor="inline", **options)


@virtual_time
@pytest.mark.parametrize("make", [Scripted, ScriptedAsync])
async def test_a_passing_error_is_tried_again_until_the_model_takes_the_batch(make: Callable[..., Any]) -> None:
    model = make(["ok", "away", "away"])
    desk = desk_of(model, random=lambda: 1.0)
    await desk.run(4)
    assert [end for _, end in desk.ends()] == ["scored"] * 8
    assert [outcome.retries for outcome in desk.outcomes()] == [0, 2, 0, 0]
    _, first, second, third, *_ = model.called_at
    assert (round(second - first, 9), round(third - second, 9)) == (0.1, 0.2)
    stamps = desk.batches[1].stamps
    assert stamps.retry_seconds == pytest.approx(0.3)
    length = 1.0 if make is ScriptedAsync else 0.0
    assert stamps.scored - stamps.preprocessed - stamps.retry_seconds == pytest.approx(length)


@virtual_time
@pytest.mark.parametrize("make", [Scripted, ScriptedAsync])
async def test_attempts_used_up_the_batch_dies_whole_and_the_next_goes_on(make: Callable[..., Any]) -> None:
    model = make(["ok", *["away"] * 4])
    desk = desk_of(model, attempts=4)
    await desk.run(3)
    assert [end for _, end in desk.ends()] == [
        "scored", "scored", *["model m: RetryableError: backend is away, 4 attempts"] * 2, "scored", "scored"
    ]  # fmt: skip
    assert len(model.called_at) == 6


@virtual_time
async def test_a_first_batch_that_never_passes_ends_the_run() -> None:
    desk = desk_of(Scripted(["away"] * 3))
    await desk.run(1)
    assert isinstance(desk.results[0], ModelError)
    assert "failed on the whole first batch: RetryableError: backend is away, 3 attempts" in str(desk.results[0])


@virtual_time
async def test_a_half_that_fails_in_passing_is_tried_again_too() -> None:
    model = Scripted(["ok", "poison", "away", "ok", "away", "away"], {13.0})
    desk = desk_of(model, size=8)
    await desk.run(2)
    assert [number for number, end in desk.ends() if end != "scored"] == ["13"]


@virtual_time
async def test_an_async_call_that_hangs_is_cancelled_and_tried_again() -> None:
    model = ScriptedAsync(["hangs", "hangs"])
    desk = desk_of(model, timeout="5s")
    await desk.run(1)
    assert desk.outcome(0).retries == 2
    assert model.called_at == [model.called_at[0] + after for after in (0, 5, 10)]
    stamps = desk.batches[0].stamps
    assert stamps.retry_seconds == pytest.approx(10)
    assert stamps.scored - stamps.preprocessed == pytest.approx(11)


@virtual_time
async def test_an_async_call_may_take_thirty_seconds_where_nothing_is_said() -> None:
    desk = desk_of(ScriptedAsync(["ok", "hangs", "hangs", "hangs"]))
    await desk.run(2)
    assert {end for _, end in desk.ends()} == {"scored", "model m: timed out after 30 s, 3 attempts"}


@virtual_time
async def test_other_batches_of_an_async_model_are_scored_while_one_waits() -> None:
    desk = desk_of(ScriptedAsync(["ok", "hangs"]), count=2)
    await desk.run(6)
    assert desk.outcome(desk.order[-1]).retries == 1
    assert [end for _, end in desk.ends()] == ["scored"] * 12


@virtual_time
@pytest.mark.parametrize("make", [Scripted, ScriptedAsync])
async def test_a_hard_stop_ends_a_wait_at_once(make: Callable[..., Any]) -> None:
    desk = desk_of(make(["away"] * 100), attempts=100, random=lambda: 1e9)
    started = anyio.current_time()
    with anyio.move_on_after(3) as scope:
        async with desk.executor:
            desk.submit(0)
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert anyio.current_time() - started == pytest.approx(3)
    assert not desk.results


FAULTS = st.sampled_from(["ok", "ok", "away", "hangs", "poison"])


@pytest.mark.parametrize("make", [Scripted, ScriptedAsync])
@settings(max_examples=60, deadline=None)
@given(
    script=st.lists(FAULTS, max_size=30),
    poison=st.sets(st.integers(0, 39).map(float), max_size=4),
    size=st.integers(1, 8),
    count=st.integers(1, 3),
    attempts=st.integers(1, 3),
)
def test_every_record_ends_once_and_in_order(
    make: Callable[..., Any], script: list[str], poison: set[float], size: int, count: int, attempts: int
) -> None:
    async def scenario() -> Desk:
        desk = desk_of(make(script, poison), size=size, count=count, attempts=attempts, random=lambda: 0.5)
        await desk.run(5, first=1)
        return desk

    desk = run_in_virtual_time(scenario)
    assert [number for number, _ in desk.ends()] == [str(number) for number in range(size, 6 * size)]
    assert {number for number in poison if size <= number < 6 * size} <= {
        float(number) for number, end in desk.ends() if end != "scored"
    }
    for batch in desk.batches.values():
        stamps = batch.stamps
        assert 0.0 <= stamps.retry_seconds <= stamps.scored - stamps.preprocessed + 1e-9


def test_a_model_that_cancels_itself_loses_its_records_and_nothing_else() -> None:
    class Cancelling:
        is_async = True

        async def score(self, x: FloatArray) -> FloatArray:
            if 3.0 in x[:, 0]:
                task = asyncio.ensure_future(asyncio.sleep(10))
                task.cancel()
                await task
            return x[:, 0]

    async def scenario() -> Desk:
        desk = Desk(transform_of(Cancelling()))
        await desk.run(4)
        return desk

    desk = asyncio.run(scenario())
    assert [end for end in desk.ends() if end[1] != "scored"] == [("3", "model m: cancelled itself")]


def test_an_async_model_may_be_cancelled_by_asyncios_own_means() -> None:
    class Endless:
        is_async = True

        async def score(self, x: FloatArray) -> FloatArray:
            await anyio.sleep_forever()
            return x[:, 0]

    async def scenario() -> None:
        desk = Desk(transform_of(Endless()))
        run = asyncio.ensure_future(desk.run(1))
        await asyncio.sleep(0.01)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(run, 10)
        assert not desk.results

    asyncio.run(scenario())
