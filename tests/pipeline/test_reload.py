"""Settings that are changed while a pipeline runs: from a batch on, with nothing lost, doubled or out of order."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import streambatch as sb
from streambatch.core.errors import ConfigError, StepError
from streambatch.core.parts import Model, ModelOptions, Site
from streambatch.core.types import FloatArray
from streambatch.core.wrapping_scoring import as_model
from streambatch.delivery.dead_letters import DeadLetterOptions
from streambatch.durability.manifest import Provenance
from streambatch.durability.options import Delivery
from streambatch.durability.store.store import StateStore
from streambatch.microbatch.inbox import QueueLimits
from streambatch.microbatch.window import BatchPolicy, Window
from streambatch.pipeline.settings import Settings
from streambatch.scoring.executors.choice import Workers
from streambatch.steps.running import RunningStandardize
from tests.chunks import chunk_of

pytestmark = pytest.mark.anyio
SCHEMA = sb.RecordSchema(id="id", features="x", shape=(1,), dtype="float64")
RECORDS, PER_BLOCK = 4000, 50
ON_ASYNCIO: tuple[str, dict[str, object]] = ("asyncio", {})


class Scaled:
    """A model whose score is a multiple of the feature."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def score(self, x: FloatArray) -> FloatArray:
        return x[:, 0] * self.scale


class Awaited:
    is_async = True

    async def score(self, x: FloatArray) -> FloatArray:
        return x[:, 0]


def settings_of(model: Any = None, **changes: Any) -> Settings:
    usual = Settings(
        preprocess=(),
        model=model or Scaled(1.0),
        batch=BatchPolicy(max_records=16, max_wait=0.001),
        workers=Workers(),
        queue=QueueLimits(),
        delivery=Delivery(),
        dead_letter=DeadLetterOptions(),
        provenance=Provenance(),
    )
    return replace(usual, **changes)


class Reloading:
    """A pipeline that takes up the next of its settings now and then while it reads."""

    def __init__(self, first: Settings, *then: Settings, **options: Any) -> None:
        self.sink, self._then = sb.MemorySink(), list(then)
        self.pipeline = sb.Pipeline(
            sources=[sb.MemorySource(self.blocks())],
            record=SCHEMA,
            sink=self.sink,
            preprocess=first.preprocess,
            model=first.model,
            batch=first.batch,
            workers=first.workers,
            queue=first.queue,
            delivery=first.delivery,
            **options,
        )

    async def blocks(self) -> AsyncIterator[bytes]:
        for at, start in enumerate(range(0, RECORDS, PER_BLOCK)):
            await anyio.lowlevel.checkpoint()
            if at % 10 == 9 and self._then:
                settings = self._then.pop(0)
                self.pipeline.reload(settings, self.pipeline.transform_of(settings))
            numbers = range(start, start + PER_BLOCK)
            yield b"".join(b'{"id": %d, "x": [%d]}\n' % (number, number + 1) for number in numbers)

    async def scores(self) -> list[float]:
        """Run, check the ids and return the scores."""
        report = await self.pipeline.run()
        lines = [json.loads(line) for line in b"".join(self.sink.payloads).splitlines()]
        assert [line["id"] for line in lines] == list(range(RECORDS))
        assert report.records["scored"] == RECORDS
        assert not self._then
        return [line["score"] for line in lines]


@pytest.mark.parametrize("executor", ["inline", "thread"])
async def test_each_record_is_scored_by_one_model_and_models_follow_each_other(executor: Any) -> None:
    workers = Workers(executor=executor)
    models = [settings_of(Scaled(float(scale)), workers=workers) for scale in range(1, 7)]
    scores = await Reloading(*models).scores()
    scales = [score / (number + 1) for number, score in enumerate(scores)]
    assert scales == sorted(scales)
    assert set(scales) <= {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}
    assert scales[-1] == 6.0


class Loaded(ModelOptions):
    """Options that count how often a model is loaded."""

    def __init__(self) -> None:
        self.count = 0

    def build(self, site: Site) -> Model:
        self.count += 1
        return as_model(Scaled(float(self.count))).build(site)


async def test_a_model_is_loaded_once_for_a_reload() -> None:
    options = Loaded()
    scores = await Reloading(settings_of(), settings_of(options)).scores()
    assert options.count == 1
    assert scores[-1] == RECORDS


async def test_workers_come_and_go() -> None:
    counts = (1, 4, 2, 8, 1, 3)
    reloading = Reloading(*[settings_of(workers=Workers(count=count, timeout=5)) for count in counts])
    assert await reloading.scores() == [number + 1 for number in range(RECORDS)]
    assert reloading.pipeline.snapshot().cutting.workers == 3


async def test_limits_and_intervals_change() -> None:
    other = settings_of(
        batch=BatchPolicy(max_records=100, max_bytes=2048, max_wait=0.01),
        queue=QueueLimits(max_records=60, max_bytes=3000),
        delivery=Delivery(checkpoint_interval=0.01, drain_timeout=1),
    )
    reloading = Reloading(settings_of(), other, settings_of(), other)
    await reloading.scores()
    snapshot = reloading.pipeline.snapshot()
    assert (snapshot.cutting.target_records, snapshot.cutting.target_wait) == (100, 0.01)
    queue = snapshot.reading.queue
    assert (queue.capacity_records, queue.capacity_size) == (60, 3000)


@pytest.mark.parametrize("anyio_backend", [ON_ASYNCIO])
async def test_a_step_with_memory_goes_on_with_what_it_holds() -> None:
    workers = Workers(count=3)
    undisturbed = await Reloading(settings_of(preprocess=[RunningStandardize()], workers=workers)).scores()
    steps = [RunningStandardize()]
    models = [settings_of(Scaled(1.0), preprocess=steps, workers=workers) for _ in range(5)]
    assert await Reloading(*models).scores() == undisturbed


async def test_what_can_not_change_is_refused_and_named() -> None:
    step = RunningStandardize()
    running = Reloading(settings_of(preprocess=[step])).pipeline
    for preprocess in ([], [RunningStandardize()], [step, step]):
        with pytest.raises(StepError, match="standardize: it has memory"):
            running.transform_of(settings_of(preprocess=preprocess))
    with pytest.raises(ConfigError, match="model: found a model whose score is async"):
        running.transform_of(settings_of(Awaited(), preprocess=[step]))
    with pytest.raises(ConfigError, match=r"workers\.executor: found 'inline'; allowed: 'thread', until"):
        running.transform_of(settings_of(workers=Workers(executor="inline"), preprocess=[step]))


@pytest.mark.parametrize("anyio_backend", [ON_ASYNCIO])
async def test_the_first_batch_of_a_change_is_stored_with_it(tmp_path: Any) -> None:
    def made(number: int) -> Settings:
        provenance = Provenance(
            config={"batch": number, "same": 1}, config_digest=f"c{number}", model={"sha256": f"m{number}"}
        )
        return settings_of(Scaled(float(number)), provenance=provenance)

    first = made(1)
    reloading = Reloading(first, made(2), made(3), state_dir=tmp_path, provenance=first.provenance)
    scores = await reloading.scores()
    with StateStore.read(tmp_path) as state:
        manifest = state.manifest(reloading.pipeline.run_id)
        batches = list(state.journal(reloading.pipeline.run_id))
    changes = manifest["changes"]
    assert [change["config"] for change in changes] == [{"batch": 2}, {"batch": 3}]
    assert [change["config_digest"] for change in changes] == ["c2", "c3"]
    at, expected = 0, 1.0
    for entry in batches:
        for change in changes:
            if change["batch"] == entry.batch:
                expected = float(change["config"]["batch"])
        for number in range(at, at + entry.scored):
            assert scores[number] == expected * (number + 1)
        at += entry.scored
    assert at == RECORDS


def test_an_open_batch_is_held_to_the_new_policy() -> None:
    window = Window(BatchPolicy(max_records=100, max_wait=60.0))
    window.add(chunk_of([b"x"] * 10), now=1.0)
    assert window.due(2.0) is None
    window.replace(BatchPolicy(max_records=100, max_wait=0.5))
    assert window.due(2.0) == "time"
    window.replace(BatchPolicy(max_records=10, max_wait=60.0))
    assert window.due(2.0) == "size"
    assert window.close("size", 2.0).count == 10
