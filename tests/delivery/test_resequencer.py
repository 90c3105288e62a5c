"""Batches leave in the order in which they were cut, in whatever order they were finished."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.batches import Batch, Stamps
from streambatch.core.outcomes import Outcome
from streambatch.delivery.resequencer import Resequencer
from tests.chunks import chunk_of


def finished(sequence: int, size: int = 1) -> tuple[Batch, Outcome]:
    batch = Batch(sequence, [chunk_of([b"x"])], 1, 2, "size", Stamps(0.0, 0.0))
    return batch, Outcome(b"1" * size, {"in": 1}, [], {})


@given(st.integers(0, 20).flatmap(lambda count: st.permutations(range(count))), st.integers(1, 8), st.data())
def test_nothing_is_lost_or_overtakes(order: list[int], size: int, data: st.DataObject) -> None:
    queue, taken = Resequencer(), []
    for sequence in order:
        queue.add(*finished(sequence))
        if data.draw(st.booleans()):
            taken += [batch.sequence for batch, _ in queue.take(size)]
    while not queue.is_empty:
        taken += [batch.sequence for batch, _ in queue.take(size)]
    assert taken == list(range(len(order)))
    assert queue.size == 0


def test_what_is_taken_has_the_size_that_was_asked_for_and_no_batch_more() -> None:
    queue = Resequencer()
    for sequence in range(4):
        queue.add(*finished(sequence, size=3))
    assert [batch.sequence for batch, _ in queue.take(4)] == [0, 1]
    assert queue.size == 6
    assert [batch.sequence for batch, _ in queue.take(100)] == [2, 3]
    assert queue.take(100) == []


@pytest.mark.anyio
async def test_a_wait_ends_when_a_batch_is_ready_or_none_will_come() -> None:
    queue, woken = Resequencer(), []

    async def wait() -> None:
        while not queue.is_closed:
            await queue.changed()
            woken.append(len(queue.take(100)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        queue.add(*finished(1))
        await anyio.wait_all_tasks_blocked()
        assert woken == []
        queue.add(*finished(0))
        await anyio.wait_all_tasks_blocked()
        assert woken == [2]
        queue.close()
    assert woken == [2, 0]
