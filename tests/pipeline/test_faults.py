"""A whole pipeline with a model whose calls fail in every way: each record ends once, and scores come out in order."""

import contextlib
import json
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streambatch as sb
from streambatch.core.errors import ModelError
from streambatch.core.types import FloatArray
from streambatch.testing import run_in_virtual_time
from streambatch.testing.virtual_time import LoopClock

SCHEMA = sb.RecordSchema(id="id", features="x", shape=(1,), dtype="float64")


class Faulty:
    """Calls fail by script, one after the other; those that don't fail on records that hold poison."""

    def __init__(self, script: list[str], poison: set[int]) -> None:
        self.script, self.poison = iter(script), poison

    def fault(self, x: FloatArray) -> str:
        fault = next(self.script, "ok")
        if fault == "away":
            raise sb.RetryableError("away")
        if (fault == "poison" and len(x) > 1) or self.poison & set(x[:, 0].tolist()):
            raise ValueError("poison")
        return fault

    def score(self, x: FloatArray) -> FloatArray:
        self.fault(x)
        return x[:, 0]


class FaultyAsync(Faulty):
    is_async = True

    async def score(self, x: FloatArray) -> FloatArray:  # type: ignore[override]
        await anyio.sleep(1000.0 if self.fault(x) == "hangs" else 0.5)
        return x[:, 0]


def lines(count: int) -> bytes:
    return b"".join(b'{"id": %d, "x": [%d]}\n' % (number, number) for number in range(count))


def scored(sink: sb.MemorySink) -> list[int]:
    return [json.loads(line)["id"] for line in b"".join(sink.payloads).splitlines()]


def pipeline(model: Any, sink: sb.MemorySink, records: int, *, workers: sb.Workers, **options: Any) -> sb.Pipeline:
    source = sb.MemorySource([lines(records)])
    return sb.Pipeline(sources=[source], record=SCHEMA, model=model, sink=sink, workers=workers, **options)


@pytest.mark.parametrize("make", [Faulty, FaultyAsync])
@settings(max_examples=60, deadline=None)
@given(
    script=st.lists(st.sampled_from(["ok", "ok", "away", "hangs", "poison"]), max_size=30),
    poison=st.sets(st.integers(0, 59), max_size=4),
    count=st.integers(1, 3),
    attempts=st.integers(1, 3),
)
def test_every_record_ends_once_and_in_order(
    make: type[Faulty], script: list[str], poison: set[int], count: int, attempts: int
) -> None:
    sink = sb.MemorySink()

    async def scenario() -> sb.RunReport:
        done = pipeline(
            make(script, poison),
            sink,
            60,
            workers=sb.Workers(executor="inline", count=count, attempts=attempts),
            batch=sb.BatchPolicy(max_records=7),
            dead_letter=sb.DeadLetterOptions(stop_at=1.0),
            clock=LoopClock(),
        )
        with contextlib.suppress(ModelError):
            await done.run()
        assert done.report is not None
        return done.report

    report = run_in_virtual_time(scenario)
    ids = scored(sink)
    assert ids == sorted(set(ids))
    assert not poison & set(ids)
    records = report.records
    assert records["received"] == records["scored"] + records["dead_lettered"] + records["unacked"] == 60
    if report.ended == "input_ended":
        assert (len(ids), records["unacked"]) == (records["scored"], 0)
    else:
        assert "failed on the whole first batch" in str(report.error)


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_one_poison_record_among_512_costs_itself_and_nineteen_calls(executor: Any) -> None:
    class Counting(Faulty):
        calls = 0

        def score(self, x: FloatArray) -> FloatArray:
            self.calls += 1
            return super().score(x)

    model, sink = Counting([], {300}), sb.MemorySink()
    report = anyio.run(pipeline(model, sink, 512, workers=sb.Workers(executor=executor)).run)
    assert (report.records["scored"], report.records["dead_lettered"]) == (511, 1)
    assert scored(sink) == [number for number in range(512) if number != 300]
    assert model.calls <= 1 + 19


def test_a_tenth_of_all_records_may_be_poison() -> None:
    poison = set(np.random.default_rng(1).choice(5000, 500, replace=False).tolist())
    sink = sb.MemorySink()
    report = anyio.run(pipeline(Faulty([], poison), sink, 5000, workers=sb.Workers(count=2)).run)
    assert (report.records["scored"], report.records["dead_lettered"]) == (4500, 500)
    assert scored(sink) == sorted(set(range(5000)) - poison)
