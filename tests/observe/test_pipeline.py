"""The metrics of a real pipeline, while it runs and after."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import anyio.lowlevel
import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client import CollectorRegistry

from streambatch.connectors.memory.sink import MemorySink
from streambatch.connectors.memory.source import MemorySource
from streambatch.core.schema import RecordSchema
from streambatch.microbatch.window import BatchPolicy
from streambatch.models.linear import LinearModel
from streambatch.observe import Metrics, MetricsObserver
from streambatch.pipeline.pipeline import Pipeline
from streambatch.scoring.executors.choice import Workers
from tests.observe.scrapes import Scrape, parts_of

GOOD, FILTERED = b'{"id": 1, "x": [1.0, 2.0]}\n', b'{"id": 2, "x": [-1.0, 2.0]}\n'
BROKEN, SHORT = b'{"id": 3, \n', b'{"id": 4, "x": [1.0]}\n'
BLOCK = GOOD * 50 + BROKEN + FILTERED * 2 + SHORT + GOOD * 46
BLOCKS = 20


class Observed:
    """A pipeline that reads `BLOCKS` blocks from each of two sources, and is scraped after every one."""

    def __init__(self, executor: Literal["inline", "thread"], state_dir: Path | None) -> None:
        self.registry = CollectorRegistry()
        self.scrapes: list[Scrape] = []
        self.sink = MemorySink(name="scores")
        observer = MetricsObserver()
        self.pipeline = Pipeline(
            name="rides",
            sources=[MemorySource(self.blocks(), name="one"), MemorySource(self.blocks(), name="two")],
            record=RecordSchema(id="id", features="x", shape=(2,)),
            batch=BatchPolicy(max_records=64, max_wait=0.01),
            preprocess=[positive],
            model=LinearModel([1.0, 1.0]),
            sink=self.sink,
            workers=Workers(executor=executor),
            state_dir=state_dir,
            observer=observer,
        )
        Metrics(self.registry).attach(self.pipeline, observer, model_format="linear")

    async def blocks(self) -> AsyncIterator[bytes]:
        for _ in range(BLOCKS):
            await anyio.lowlevel.checkpoint()
            yield BLOCK
            self.scrapes.append(self.scrape())

    def scrape(self) -> Scrape:
        return Scrape(self.registry)


def positive(x: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.bool_]]:
    return x, x[:, 0] > 0


ON_ASYNCIO: tuple[str, dict[str, object]] = ("asyncio", {})
ON_TRIO: tuple[str, dict[str, object]] = ("trio", {})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("anyio_backend", "executor", "is_durable"),
    [
        (ON_ASYNCIO, "inline", True),
        (ON_ASYNCIO, "thread", True),
        (ON_ASYNCIO, "inline", False),
        (ON_TRIO, "inline", False),
        (ON_TRIO, "thread", False),
    ],
)
async def test_every_record_is_accounted_for(
    tmp_path: Path, executor: Literal["inline", "thread"], is_durable: bool
) -> None:
    observed = Observed(executor, tmp_path if is_durable else None)
    before = observed.scrape()
    assert sum(before.values("source_received_records_total")) == 0
    report = await observed.pipeline.run()
    after = observed.scrape()

    assert [scrape.value("records_imbalance") for scrape in observed.scrapes] == [0.0] * (2 * BLOCKS)
    assert after.value("records_imbalance") == after.value("records_unacked") == 0
    for source in ("one", "two"):
        assert after.value("source_received_records_total", source=source) == 100 * BLOCKS
        assert after.value("source_received_bytes_total", source=source) == len(BLOCK) * BLOCKS
        assert after.value("records_scored_total", source=source) == 96 * BLOCKS
        assert after.value("records_dropped_total", source=source, reason="filtered") == 2 * BLOCKS
    assert after.value("records_dead_lettered_total", stage="decode", reason="invalid_json") == 2 * BLOCKS
    assert after.value("records_dead_lettered_total", stage="validate", reason="wrong_shape") == 2 * BLOCKS
    assert sum(after.values("batches_total")) == sum(report.batches.values())
    assert after.value("sink_sent_records_total", sink="scores") == report.records["scored"]
    assert after.value("sink_sent_bytes_total", sink="scores") == len(observed.sink.data())
    assert after.value("pipeline_state", state="stopped") == 1
    assert (after.value("checkpoints_total", outcome="ok") > 0) == is_durable

    passed = {labels["stage"]: value / BLOCKS for labels, value in after.find("stage_records_total", outcome="ok")}
    assert passed == {
        "frame": 200, "decode": 198, "validate": 196, "preprocess": 196, "score": 192, "encode": 192, "sink": 192,
    }  # fmt: skip


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [ON_ASYNCIO])
@pytest.mark.parametrize("executor", ["inline", "thread"])
async def test_the_parts_of_the_latency_add_up(tmp_path: Path, executor: Literal["inline", "thread"]) -> None:
    observed = Observed(executor, tmp_path)
    report = await observed.pipeline.run()
    for scrape in (*observed.scrapes, observed.scrape()):
        parts = parts_of(scrape)
        assert sum(parts.values()) == pytest.approx(scrape.value("end_to_end_latency_seconds_sum"), rel=1e-9)
        assert min(parts.values()) >= 0
    after = observed.scrape()
    scored = report.records["scored"]
    assert after.value("end_to_end_latency_seconds_count") == after.value("ack_latency_seconds_count") == scored
    assert after.value("ack_latency_seconds_sum") >= after.value("end_to_end_latency_seconds_sum") > 0
    assert after.value("batch_records_count") == sum(report.batches.values())
    assert after.value("batch_records_sum") == report.records["received"]
