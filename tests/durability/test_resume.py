"""Pipelines with a state folder that are stopped at any moment, in every way, and started again in the same process:
what is in the outputs in the end, and what the state says of it, is as if they had run through."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import streambatch as sb
from streambatch.connectors.files.output import Output
from streambatch.connectors.files.reader import FileReader
from streambatch.connectors.files.writer import FileWriter
from streambatch.core.chunks import Chunk
from streambatch.core.errors import SinkError, SinkOutage, StateOutage
from streambatch.core.events import Refusal
from streambatch.core.intake import Intake
from streambatch.core.parts import Site
from streambatch.core.report import Counts
from streambatch.core.retry import RetryPolicy
from streambatch.core.types import FloatArray
from streambatch.delivery import dead_letter_file, outages, outbox
from streambatch.durability.store.store import StateStore
from streambatch.storage.segments import Rotation
from tests.connectors.files.written import rows_in

SCHEMA = sb.RecordSchema(id="id", features="x", shape=(1,), dtype="float64")
SOURCES = ("a", "b")
RECORDS = 600
DEAD_EVERY = 7
POLICY = sb.BatchPolicy(max_records=16, max_wait=0.001)


class Slow:
    """Scores each record as its own number, and takes its time, so that a stop finds it at work."""

    def score(self, x: FloatArray) -> FloatArray:
        time.sleep(0.001)
        return x[:, 0]


def is_dead(number: int) -> bool:
    return number % DEAD_EVERY == 3


def lines(start: int, stop: int) -> bytes:
    dead, alive = b'{"id": %d}\n', b'{"id": %d, "x": [%d]}\n'
    return b"".join(dead % n if is_dead(n) else alive % (n, n) for n in range(start, stop))


@dataclass
class Place:
    """A folder in which one pipeline runs again and again. Records of source `b` have numbers from RECORDS on."""

    folder: Path
    records: dict[str, int] = field(default_factory=lambda: {"a": RECORDS, "b": RECORDS // 3})

    def __post_init__(self) -> None:
        for at, (name, count) in enumerate(self.records.items()):
            (self.folder / name).mkdir(parents=True)
            middle = at * RECORDS + count // 2
            (self.folder / name / "1.jsonl").write_bytes(lines(at * RECORDS, middle))
            (self.folder / name / "2.jsonl").write_bytes(lines(middle, at * RECORDS + count))

    def pipeline(self, sink: Any, **options: Any) -> sb.Pipeline:
        made = [sb.FileSource(str(self.folder / name / "*.jsonl"), name=name) for name in self.records]
        defaults: dict[str, Any] = {
            "sources": made,
            "record": SCHEMA,
            "model": Slow(),
            "batch": POLICY,
            "queue": sb.QueueLimits(max_records=64),
            "delivery": sb.Delivery(checkpoint_interval=0.003, drain_timeout=5.0),
            "dead_letter": sb.DeadLetterOptions(
                str(self.folder / "dead.jsonl"), stop_at=1.0, rotate=Rotation(max_bytes=1500)
            ),
            "state_dir": self.folder / "state",
        }
        return sb.Pipeline(sink=sink, **{**defaults, **options})

    def numbers(self) -> set[int]:
        return {at * RECORDS + n for at, count in enumerate(self.records.values()) for n in range(count)}

    def dead(self) -> list[int]:
        found = [*sorted(self.folder.glob("dead-*.jsonl")), *self.folder.glob("dead.jsonl*")]
        letters = [json.loads(line) for path in found for line in path.read_bytes().splitlines()]
        return [json.loads(letter["record"])["id"] for letter in letters]

    def counts(self) -> dict[str, Counts]:
        with contextlib.closing(StateStore.read(self.folder / "state")) as state:
            return dict(state.load().counts)

    def check_dead_and_counts(self) -> None:
        """What died, and what is counted in all runs, is as in one that was never stopped."""
        assert sorted(self.dead()) == sorted(n for n in self.numbers() if is_dead(n))
        counts = self.counts()
        for at, (name, count) in enumerate(self.records.items()):
            dead = sum(is_dead(at * RECORDS + n) for n in range(count))
            found = counts[name]
            assert (found.received, found.scored, found.dead_lettered) == (count, count - dead, dead), name
            assert found.unacked == 0

    def check_digests(self) -> None:
        """Of what a run has read, the digest is that of the bytes from its first position to its last."""
        with contextlib.closing(StateStore.read(self.folder / "state")) as state:
            for run in state.runs():
                for source in state.manifest(run.run)["sources"].values():
                    for part in source["partitions"]:
                        data = Path(part["partition"]).read_bytes()[part["first"] : part["last"]]
                        assert part["sha256"] == sha256(data).hexdigest(), (run.number, run.why, part)


class Stops:
    """Ends a pipeline somehow after a while; a pipeline that ends by itself is done.

    at_work: the while begins once records are in flight.
    """

    def __init__(self, seed: int, *, how: Sequence[str] = ("abort", "cancel", "stop"), at_work: bool = False) -> None:
        self.random, self.how, self.at_work = random.Random(seed), how, at_work

    async def run(self, pipeline: sb.Pipeline, longest: float) -> sb.RunReport | None:
        async with anyio.create_task_group() as tasks:
            ways = {"abort": pipeline.abort, "cancel": tasks.cancel_scope.cancel, "stop": pipeline.stop}
            how = ways[self.random.choice(self.how)]
            tasks.start_soon(self._after, self.random.uniform(0, longest), how, pipeline)
            with anyio.fail_after(30):
                report = await pipeline.run()
            tasks.cancel_scope.cancel()
            return report
        return None

    async def _after(self, seconds: float, how: Callable[[], Any], pipeline: sb.Pipeline) -> None:
        while self.at_work and not pipeline.snapshot().totals.unacked:
            await anyio.sleep(0.001)
        await anyio.sleep(seconds)
        how()
        await anyio.sleep_forever()


def run_until_done(make: Callable[[], sb.Pipeline], seed: int, longest: float = 0.08, most: int = 60) -> None:
    """Stop and start again until a run comes to the end of its input."""

    async def all_runs() -> None:
        stops = Stops(seed)
        for _ in range(most):
            await stops.run(make(), longest)
        with anyio.fail_after(30):
            report = await make().run()
        assert report.ended == "input_ended"

    anyio.run(all_runs)


def in_segments(folder: Path, name: str = "scores") -> list[int]:
    paths = [*sorted(folder.glob(f"{name}-*.jsonl")), *folder.glob(f"{name}.jsonl*")]
    return [json.loads(line)["id"] for path in paths for line in path.read_bytes().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rotate", [None, Rotation(max_bytes=2000)])
def test_a_file_has_each_score_once_and_in_order(tmp_path: Path, rotate: Rotation | None, seed: int) -> None:
    place = Place(tmp_path)
    sink = partial(sb.FileSink, str(tmp_path / "scores.jsonl"), rotate=rotate)
    run_until_done(lambda: place.pipeline(sink()), seed, most=12)
    found = in_segments(tmp_path)
    assert sorted(found) == sorted(n for n in place.numbers() if not is_dead(n))
    for at in range(len(SOURCES)):
        mine = [n for n in found if n // RECORDS == at]
        assert mine == sorted(mine)
    place.check_dead_and_counts()
    place.check_digests()


class Server:
    """What a sink with batch ids has sent to: all requests that came, by id; it may fail for a while."""

    def __init__(self, seed: int, slow_seconds: float = 0.002) -> None:
        self.random, self.slow_seconds = random.Random(seed), slow_seconds
        self.taken: dict[str, bytes] = {}
        self.reused: list[str] = []

    async def take(self, payload: bytes, batch_id: str) -> None:
        await anyio.sleep(self.random.choice([0, 0, self.slow_seconds]))
        before = self.random.random()
        if before < 0.1:
            raise SinkOutage("server", "away before it had the scores")
        if self.taken.setdefault(batch_id, payload) != payload:
            self.reused.append(batch_id)
        await anyio.sleep(self.random.choice([0, 0, self.slow_seconds]))
        if before > 0.9:
            raise SinkOutage("server", "away after it had the scores")


class IdentifiedSink:
    """Hands every batch to a server."""

    name, format = "identified", "jsonl"

    def __init__(self, server: Server) -> None:
        self.server = server

    async def open(self, header: bytes) -> None: ...

    async def write(self, payload: bytes) -> None:
        raise AssertionError("batches have ids")

    async def write_batch(self, payload: bytes, batch_id: str) -> None:
        await self.server.take(payload, batch_id)

    async def sync(self) -> int:
        return 0

    async def close(self) -> None: ...


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "RETRIES", RetryPolicy(first_seconds=0.002, longest_seconds=0.01))


def check_each_score_came_once(place: Place, server: Server) -> None:
    """Whoever knows batches by their ids has each score once."""
    assert not server.reused
    found = [json.loads(line)["id"] for payload in server.taken.values() for line in payload.splitlines()]
    assert Counter(found) == Counter(n for n in place.numbers() if not is_dead(n))
    place.check_dead_and_counts()
    place.check_digests()


@pytest.mark.slow
@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("seed", range(8))
def test_whoever_knows_batches_by_their_ids_has_each_score_once(tmp_path: Path, seed: int) -> None:
    place, server = Place(tmp_path), Server(seed)

    def make() -> sb.Pipeline:
        return place.pipeline(IdentifiedSink(server))

    async def all_runs() -> None:
        stops = Stops(seed, how=("abort", "cancel"))
        for _ in range(15):
            await stops.run(make(), 0.15)
        with anyio.fail_after(30):
            await make().run()

    anyio.run(all_runs)
    check_each_score_came_once(place, server)


class Pieces(Intake):
    """An intake that is given a few records at a time, as long as `go_on` says."""

    def __init__(self, intake: Intake, go_on: Callable[[], Awaitable[bool]]) -> None:
        self.intake, self.go_on = intake, go_on
        self.clock, self.observer, self.memory = intake.clock, intake.observer, intake.memory
        self.run_id = intake.run_id

    @property
    def has_room(self) -> bool:
        return self.intake.has_room

    def refused(self, records: int, reason: Refusal) -> None:
        self.intake.refused(records, reason)

    async def put(self, chunk: Chunk) -> None:
        while chunk.count > 5:
            await self.intake.put(chunk.split_off(5))
            if not await self.go_on():
                return
        await self.intake.put(chunk)


def in_pieces(path: str, name: str, go_on: Callable[[], Awaitable[bool]]) -> sb.FileSource:
    """Return a source of files of which a few records can be read at a time."""

    class Slowly(sb.FileSource):
        def build(self, site: Site) -> FileReader:
            reader = super().build(site)
            run = reader.run

            async def slowly(intake: Intake) -> None:
                await run(Pieces(intake, go_on))

            reader.run = slowly  # type: ignore[method-assign]
            return reader

    return Slowly(path, name=name)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("seed", range(6))
def test_stopped_while_batches_are_cut_again_they_stay_what_they_were(tmp_path: Path, seed: int) -> None:
    """Each crash leaves batches that were sent and not acked; a graceful stop comes while the next run has read some
    of their records."""
    place, server, left = Place(tmp_path), Server(seed, slow_seconds=0.02), 0
    delivery = sb.Delivery(checkpoint_interval=0.05, drain_timeout=20.0)

    def make(stop_after: int | None = None) -> sb.Pipeline:
        pieces = itertools.count(1)

        async def go_on() -> bool:
            if next(pieces) == stop_after:
                made.stop()
            await anyio.sleep(0.001)
            return made.snapshot().state == "running"

        sources = [in_pieces(str(tmp_path / name / "*.jsonl"), name, go_on) for name in SOURCES]
        made = place.pipeline(IdentifiedSink(server), sources=sources, delivery=delivery)
        return made

    async def all_runs() -> None:
        nonlocal left
        crash = Stops(seed, how=("abort", "cancel"), at_work=True)
        for _ in range(8):
            await crash.run(make(), 0.1)
            pipeline = make(stop_after=crash.random.randint(1, 8))
            with anyio.fail_after(30):
                report = await pipeline.run()
            assert report.records["unacked"] == pipeline.safe_records
            left += pipeline.safe_records
        with anyio.fail_after(30):
            await make().run()

    anyio.run(all_runs)
    check_each_score_came_once(place, server)
    assert left, "no stop came while batches were cut again"


class Breaking(sb.FileSink):
    """A file on a disk that breaks for good: what it was given last is not durable, nor will be."""

    def build(self, site: Site) -> FileWriter:
        return BreakingWriter(Output(self.output, site.clock), self.if_exists)


class BreakingWriter(FileWriter):
    async def sync(self) -> int:
        if self._output.written > 1:
            raise SinkError(self.name, "the disk broke")
        return await super().sync()


def test_what_a_run_that_failed_had_received_is_not_received_again(tmp_path: Path) -> None:
    place = Place(tmp_path)
    options = {
        "delivery": sb.Delivery(checkpoint_interval=0.01),
        "dead_letter": sb.DeadLetterOptions(str(tmp_path / "dead.jsonl"), stop_at=1.0),
    }
    broken = place.pipeline(Breaking(str(tmp_path / "scores.jsonl")), **options)
    with pytest.raises(SinkError):
        anyio.run(broken.run)
    anyio.run(place.pipeline(sb.FileSink(str(tmp_path / "scores.jsonl")), **options).run)
    place.check_dead_and_counts()
    place.check_digests()


def failing(times: int, call: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """Return what raises an error so often before it does what `call` does."""
    left = iter(range(times))

    def called(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is not None:
            raise error
        return call(*args, **kwargs)

    return called


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("method", ["open", "load", "begin_run", "intended", "intend", "commit", "prune", "end_run"])
def test_an_outage_of_the_state_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    place, server = Place(tmp_path, {"a": 50}), Server(0)
    outage = StateOutage(tmp_path / "state" / "state.sqlite3", "database or disk is full")
    monkeypatch.setattr(StateStore, method, failing(2, getattr(StateStore, method), outage))
    report = anyio.run(place.pipeline(IdentifiedSink(server)).run)
    assert report.ended == "input_ended"
    monkeypatch.undo()
    place.check_dead_and_counts()


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("method", ["open", "begin_run"])
@pytest.mark.parametrize("stop", [sb.Pipeline.stop, sb.Pipeline.abort])
def test_a_stop_needs_no_state_that_is_out_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, stop: Callable[[sb.Pipeline], None]
) -> None:
    outage = StateOutage(tmp_path / "state" / "state.sqlite3", "database or disk is full")
    monkeypatch.setattr(StateStore, method, failing(10**9, getattr(StateStore, method), outage))
    pipeline = Place(tmp_path, {"a": 50}).pipeline(sb.NoneSink())

    async def scenario() -> sb.RunReport:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop_at_outage)
            with anyio.fail_after(5):
                report = await pipeline.run()
        return report

    async def stop_at_outage() -> None:
        while len(pipeline.snapshot().not_ready) < 2:
            await anyio.sleep(0.001)
        stop(pipeline)

    assert anyio.run(scenario).ended == "stopped"


@pytest.mark.usefixtures("quick_retries")
def test_a_stop_before_all_outputs_are_open_lets_go_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, {"a": 50})
    letters = sb.DeadLetterOptions(str(tmp_path / "dead" / "letters.jsonl"))
    no_folder = SinkOutage("dead_letter", "no space left on device")
    monkeypatch.setattr(
        dead_letter_file, "_prepare_folder", failing(10**9, dead_letter_file._prepare_folder, no_folder)
    )

    async def scenario() -> None:
        pipeline = place.pipeline(sb.FileSink(str(tmp_path / "scores.jsonl")), dead_letter=letters)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop_at_outage, pipeline)
            with anyio.fail_after(5):
                await pipeline.run()
        assert pipeline.report is not None
        assert pipeline.report.ended == "stopped"
        monkeypatch.undo()
        report = await place.pipeline(sb.FileSink(str(tmp_path / "scores.jsonl"))).run()
        assert report.ended == "input_ended"

    async def stop_at_outage(pipeline: sb.Pipeline) -> None:
        while len(pipeline.snapshot().not_ready) < 2:
            await anyio.sleep(0.001)
        pipeline.stop()

    anyio.run(scenario)


class Careless:
    """Works in place, as it may, and fails for now or on a record."""

    def __init__(self, poison: int | None) -> None:
        self.poison, self.calls = poison, 0

    def score(self, x: FloatArray) -> FloatArray:
        self.calls += 1
        is_poisoned = self.poison is not None and self.poison in x[:, 0].tolist()
        x += 1000.0
        if is_poisoned:
            raise ValueError("poison")
        if self.calls == 1:
            raise sb.RetryableError("away")
        return x[:, 0]


def careless_step(x: FloatArray) -> FloatArray:
    is_poisoned = 5.0 in x[:, 0].tolist()
    x -= 1000.0
    if is_poisoned:
        raise ValueError("poison")
    return x


@pytest.mark.parametrize("executor", ["inline", "thread"])
@pytest.mark.parametrize(
    ("steps", "poison", "added"), [((), None, 1000.0), ((), 5, 1000.0), ((careless_step,), None, 0.0)]
)
def test_what_a_call_that_failed_did_to_its_features_is_not_scored(
    steps: Any, poison: int | None, added: float, executor: Any
) -> None:
    sink = sb.MemorySink()
    data = b"".join(b'{"id": %d, "x": [%d]}\n' % (n, n) for n in range(20))
    pipeline = sb.Pipeline(
        sources=[sb.MemorySource([data])], record=SCHEMA, model=Careless(poison), sink=sink, preprocess=steps,
        workers=sb.Workers(executor=executor),
    )  # fmt: skip
    anyio.run(pipeline.run)
    found = [json.loads(line) for line in b"".join(sink.payloads).splitlines()]
    dead = 5 if steps else poison
    assert [(each["id"], each["score"]) for each in found] == [(n, n + added) for n in range(20) if n != dead]


class Numbering:
    """A step with memory: adds to each row how many came before it."""

    is_stateful, name = True, "numbering"

    def initial_state(self) -> int:
        return 0

    def __call__(self, state: int, x: FloatArray) -> tuple[int, FloatArray]:
        return state + len(x), x + np.arange(state, state + len(x))[:, np.newaxis]

    def dump(self, state: int) -> bytes:
        return str(state).encode()

    def load(self, data: bytes) -> int:
        return int(data)


class Unsteady(Slow):
    """Fails in passing, now and then."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def score(self, x: FloatArray) -> FloatArray:
        if self.random.random() < 0.2:
            raise sb.RetryableError("away")
        return super().score(x)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_steps_with_memory_go_on_from_the_last_ack_whatever_is_tried_again(tmp_path: Path, seed: int) -> None:
    place = Place(tmp_path, {"a": RECORDS})
    workers = sb.Workers(count=3, attempts=30)
    sink = partial(sb.FileSink, str(tmp_path / "scores.jsonl"))
    run_until_done(
        lambda: place.pipeline(sink(), preprocess=[Numbering()], model=Unsteady(seed), workers=workers),
        seed,
        longest=0.2,
        most=12,
    )
    found = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_bytes().splitlines()]
    alive = [n for n in range(RECORDS) if not is_dead(n)]
    assert [(each["id"], each["score"]) for each in found] == [(n, n + at) for at, n in enumerate(alive)]
    place.check_dead_and_counts()
    place.check_digests()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_tables_have_each_score_once(tmp_path: Path, format: Any, seed: int) -> None:
    place = Place(tmp_path)
    rotate = Rotation(max_bytes=6000, max_age=0.05)
    sink = partial(sb.FileSink, str(tmp_path / f"scores.{format}"), format=format, rotate=rotate)
    run_until_done(lambda: place.pipeline(sink()), seed, longest=0.12, most=12)
    found = [number for number, _ in rows_in(sorted(tmp_path.glob(f"scores-*.{format}")), format)]
    assert Counter(found) == Counter(n for n in place.numbers() if not is_dead(n))
    place.check_dead_and_counts()
    place.check_digests()


def test_pipelines_side_by_side_leave_each_other_alone(tmp_path: Path) -> None:
    places = [Place(tmp_path / name) for name in ("left", "right")]

    async def both() -> None:
        async with anyio.create_task_group() as tasks:
            for place in places:
                tasks.start_soon(place.pipeline(sb.FileSink(str(place.folder / "scores.jsonl"))).run)

    anyio.run(both)
    for place in places:
        assert sorted(in_segments(place.folder)) == sorted(n for n in place.numbers() if not is_dead(n))
        place.check_dead_and_counts()


@pytest.mark.parametrize("records", [{"a": 0}, {"a": 0, "b": 50}])
def test_nothing_to_read_is_no_trouble(tmp_path: Path, records: dict[str, int]) -> None:
    place = Place(tmp_path, records)
    for _ in range(3):
        anyio.run(place.pipeline(sb.FileSink(str(tmp_path / "scores.jsonl"))).run)
    place.check_dead_and_counts()


def test_a_run_may_have_nothing_but_dead_letters(tmp_path: Path) -> None:
    place = Place(tmp_path, {"a": 0})
    (tmp_path / "a" / "3.jsonl").write_bytes(b"not json\n" * 100)
    make = partial(place.pipeline, dead_letter=sb.DeadLetterOptions(str(tmp_path / "dead.jsonl"), stop_at=1.0))
    anyio.run(make(sb.FileSink(str(tmp_path / "scores.parquet"), format="parquet")).run)
    assert anyio.run(make(IdentifiedSink(Server(0))).run).records["received"] == 0
    assert place.counts()["a"].dead_lettered == 100
    assert len((tmp_path / "dead.jsonl").read_bytes().splitlines()) == 100


class Halting(IdentifiedSink):
    """Takes so many batches, and then hangs until it is cancelled."""

    def __init__(self, server: Server, batches: int) -> None:
        super().__init__(server)
        self.left = batches
        self.hangs = anyio.Event()

    async def write_batch(self, payload: bytes, batch_id: str) -> None:
        self.server.taken.setdefault(batch_id, payload)
        self.left -= 1
        if self.left < 0:
            self.hangs.set()
            await anyio.sleep_forever()


def test_a_batch_keeps_its_id_while_one_before_it_lost_records_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch in flight with records that only a socket knew comes again without them, under another id; those behind
    it are still the same, also after one more crash."""
    monkeypatch.setattr(outbox, "WRITE_SIZE", 1)  # each batch by itself
    place, server = Place(tmp_path, {"a": 200}), Server(0)
    policy = sb.BatchPolicy(max_records=40, max_wait=10.0)
    socket = b"".join(b'{"id": %d, "x": [1]}\n' % n for n in range(1000, 1010))

    async def crash(batches: int, *more: Any) -> None:
        sink = Halting(server, batches)
        files = sb.FileSource(str(tmp_path / "a" / "*.jsonl"), name="a")
        delivery = sb.Delivery(checkpoint_interval=0.001)
        pipeline = place.pipeline(sink, sources=[*more, files], batch=policy, delivery=delivery)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pipeline.run)
            await sink.hangs.wait()
            while batches and pipeline.snapshot().totals.scored == 0:
                await anyio.sleep(0.001)
            pipeline.abort()

    async def scenario() -> None:
        await crash(0, sb.MemorySource([socket]))
        before = dict(server.taken)
        await crash(1)
        assert len(server.taken) > len(before)
        await crash(1)
        report = await place.pipeline(
            IdentifiedSink(server), sources=[sb.FileSource(str(tmp_path / "a" / "*.jsonl"), name="a")], batch=policy
        ).run()
        assert report.ended == "input_ended"

    anyio.run(scenario)
    found = Counter(json.loads(line)["id"] for body in server.taken.values() for line in body.splitlines())
    twice = {number for number, times in found.items() if times > 1}
    assert set(found) == {n for n in range(200) if not is_dead(n)} | set(range(1000, 1010))
    assert twice == {n for n in range(30) if not is_dead(n)}, "those that were in one batch with what is lost"
    assert not server.reused


def test_a_stop_while_batches_are_cut_again_loses_nothing_that_came_from_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file still owes to a batch is left to the next run; what a socket brought meanwhile is scored and acked,
    and neither takes the batch its place nor its id, however often that happens."""
    monkeypatch.setattr(outbox, "WRITE_SIZE", 1)  # each batch by itself
    place, server = Place(tmp_path, {"a": 200}), Server(0)
    server.random.random = lambda: 0.5  # type: ignore[method-assign]  # it is always there
    policy = sb.BatchPolicy(max_records=40, max_wait=10.0)
    path, stopped = str(tmp_path / "a" / "*.jsonl"), anyio.Event()

    def made(sink: Any, source: Any, *more: Any) -> sb.Pipeline:
        delivery = sb.Delivery(checkpoint_interval=30.0)
        return place.pipeline(sink, sources=[source, *more], batch=policy, delivery=delivery)

    async def crash() -> None:
        sink = Halting(server, 3)
        pipeline = made(sink, sb.FileSource(path, name="a"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pipeline.run)
            await sink.hangs.wait()
            pipeline.abort()

    async def no_more() -> bool:
        await stopped.wait()
        return False

    async def stop(numbers: range) -> None:
        nonlocal stopped
        stopped = anyio.Event()
        block = b"".join(b'{"id": %d, "x": [1]}\n' % n for n in numbers)
        socket = sb.MemorySource([block], name="socket")
        pipeline = made(IdentifiedSink(server), in_pieces(path, "a", no_more), socket)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pipeline.run)
            while pipeline.snapshot().totals.unacked < 5 + len(numbers):
                await anyio.sleep(0.001)
            pipeline.stop()
            stopped.set()
        assert pipeline.report is not None
        records = pipeline.report.records
        assert (records["scored"], records["unacked"], pipeline.safe_records) == (len(numbers), 5, 5)

    async def scenario() -> None:
        await crash()
        before = dict(server.taken)
        assert len(before) == 4
        await stop(range(1000, 1010))
        await stop(range(1010, 1020))
        assert {id: server.taken[id] for id in before} == before
        assert len(server.taken) == 6
        report = await made(IdentifiedSink(server), sb.FileSource(path, name="a")).run()
        assert (report.ended, report.records["unacked"]) == ("input_ended", 0)

    anyio.run(scenario)
    assert not server.reused
    found = Counter(json.loads(line)["id"] for body in server.taken.values() for line in body.splitlines())
    assert found == Counter([*(n for n in range(200) if not is_dead(n)), *range(1000, 1020)])
    place.check_dead_and_counts()
    with contextlib.closing(StateStore.read(tmp_path / "state")) as state:
        assert state.intended() == []


class Pushing(sb.MemorySource):
    """A source whose client can't be held back."""

    when_full = "drop_newest"


def test_a_block_larger_than_the_queue_is_not_dropped_whole() -> None:
    sink = sb.MemorySink()
    block = b"".join(b'{"id": %d, "x": [%d]}\n' % (n, n) for n in range(500))
    source = Pushing([block, block])
    queue = sb.QueueLimits(max_records=100)
    pipeline = sb.Pipeline(sources=[source], record=SCHEMA, model=Slow(), sink=sink, queue=queue)
    records = anyio.run(pipeline.run).records
    assert records["received"] == 1000 == records["scored"] + records["dropped"]
    assert records["scored"] >= 100
    ids = [json.loads(line)["id"] for line in b"".join(sink.payloads).splitlines()]
    assert ids[:100] == list(range(100))
