"""Real rows scored into every output format, compression and rotation; read back, scores have the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import streambatch as sb
from streambatch.codecs.containers import Compression
from streambatch.codecs.formats import OutputFormat
from streambatch.core.batches import Batch
from streambatch.core.events import Observer
from streambatch.core.outcomes import Outcome
from streambatch.core.types import FloatArray
from streambatch.storage.segments import Rotation
from tests.connectors.files.written import FORMATS, closed_in, read
from tests.e2e.running import is_balanced, run_to_end, running

pytestmark = pytest.mark.anyio
RECORD = sb.RecordSchema(id="timestamp", features=["value"], dtype="float64", carry=["value"])
Score = tuple[str, bytes, str]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def taxi(data: Path) -> tuple[Path, list[Score]]:
    """A file of rows, and what each should come out as: id, the bits of its score, the carried field."""
    path = data / "nab" / "nyc_taxi.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    x = np.array([float(value) for _, value in rows])
    return path, [(at, bits, value) for (at, value), bits in zip(rows, bits_of(squeezed(x[:, None])), strict=True)]


def squeezed(x: FloatArray) -> FloatArray:
    """Return scores that need all their digits; the same whatever the batch."""
    result: FloatArray = np.sqrt(x[:, 0]) / 3
    return result


def bits_of(scores: FloatArray) -> list[bytes]:
    return [score.tobytes() for score in np.asarray(scores, np.float64)]


def scores_in(paths: list[Path], format: OutputFormat) -> list[Score]:
    rows = [row for path in paths for row in read(path, format)]
    bits = bits_of(np.array([float(row["score"]) for row in rows]))
    return [(str(row["id"]), one, str(row["value"])) for row, one in zip(rows, bits, strict=True)]


def pipeline(
    source: sb.FileSource, sink: sb.FileSink, state: Path | None, observer: Observer | None = None
) -> sb.Pipeline:
    return sb.Pipeline(
        sources=[source],
        record=RECORD,
        model=sb.PythonModel(squeezed),
        sink=sink,
        batch=sb.BatchPolicy(max_records=100),
        delivery=sb.Delivery(checkpoint_interval=0.01),
        state_dir=state,
        observer=observer,
    )


@pytest.mark.parametrize("rotate", [None, Rotation(max_bytes=20_000)], ids=["one-file", "rotated"])
@pytest.mark.parametrize(("format", "compression"), FORMATS)
async def test_scores_are_the_same_in_every_format(
    taxi: tuple[Path, list[Score]],
    tmp_path: Path,
    format: OutputFormat,
    compression: Compression,
    rotate: Rotation | None,
) -> None:
    path, expected = taxi
    out = tmp_path / "out"
    sink = sb.FileSink(str(out / f"s.{format}"), format=format, compression=compression, rotate=rotate)
    report = await pipeline(sb.FileSource(str(path), format="csv"), sink, tmp_path / "state").run()
    assert report.records["scored"] == len(expected)
    assert report.records["unacked"] == 0
    paths = closed_in(out) if rotate or format == "parquet" else [out / f"s.{format}"]
    assert scores_in(paths, format) == expected
    assert not list(out.glob("*.open"))
    assert (len(paths) > 1) == (rotate is not None)


class StoppingAfter(Observer):
    """Stops a pipeline when so many batches were written."""

    def __init__(self, batches: int) -> None:
        self.left, self.stop = batches, lambda: None

    stop: Callable[[], None]

    def batch_written(self, batch: Batch, outcome: Outcome) -> None:
        self.left -= 1
        if self.left == 0:
            self.stop()


@pytest.mark.parametrize("format", ["jsonl", "csv", "arrow", "parquet"])
@pytest.mark.parametrize("batches", [1, 2, 7, 40])
async def test_a_stop_while_segments_are_closed_loses_nothing(
    taxi: tuple[Path, list[Score]], tmp_path: Path, format: OutputFormat, batches: int
) -> None:
    path, expected = taxi
    observer = StoppingAfter(batches)
    sink = sb.FileSink(str(tmp_path / "out" / f"s.{format}"), format=format, rotate=Rotation(max_bytes=1))
    stopped = pipeline(sb.FileSource(str(path), format="csv"), sink, tmp_path / "state", observer)
    observer.stop = stopped.stop
    report = await stopped.run()
    assert is_balanced(report.records)
    assert report.records["unacked"] == 0
    scores = scores_in(closed_in(tmp_path / "out"), format)
    assert scores == expected[: report.records["scored"]]
    assert len(scores) >= batches * 100 or len(scores) == len(expected)


async def test_a_hard_stop_counts_what_no_closed_segment_holds_as_unacked(
    taxi: tuple[Path, list[Score]], tmp_path: Path
) -> None:
    path, _ = taxi
    observer = StoppingAfter(20)
    sink = sb.FileSink(str(tmp_path / "out" / "s.parquet"), format="parquet")
    stopped = pipeline(sb.FileSource(str(path), format="csv"), sink, tmp_path / "state", observer)
    observer.stop = stopped.abort
    report = await stopped.run()
    assert is_balanced(report.records)
    assert report.records["scored"] == 0
    assert report.records["unacked"] >= 2000
    assert [path.name for path in (tmp_path / "out").iterdir() if path.stat().st_size] == []


@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_what_was_written_can_be_read_by_a_file_source(
    taxi: tuple[Path, list[Score]], tmp_path: Path, compression: Compression
) -> None:
    path, expected = taxi
    first = sb.FileSink(
        str(tmp_path / "a" / "s.csv"), format="csv", compression=compression, rotate=Rotation(max_bytes=9)
    )
    await pipeline(sb.FileSource(str(path), format="csv"), first, None).run()
    again = sb.Pipeline(
        sources=[sb.FileSource(str(tmp_path / "a" / "s-*.csv"), format="csv")],
        record=sb.RecordSchema(id="id", features=["score"], dtype="float64"),
        model=sb.PythonModel(lambda x: x[:, 0]),
        sink=sb.FileSink(str(tmp_path / "b.jsonl")),
    )
    report = await again.run()
    assert report.records["scored"] == len(expected)
    rows = read(tmp_path / "b.jsonl", "jsonl")
    assert [row["id"] for row in rows] == [row[0] for row in expected]
    assert bits_of(np.array([row["score"] for row in rows])) == [row[1] for row in expected]


CONFIG = """
    name = "outputs"
    [source.rows]
    type = "file"
    path = "in.csv"
    format = "csv"
    [record]
    id = "timestamp"
    features = ["value"]
    dtype = "float64"
    carry = {{ value = "int64" }}
    [batch]
    max_records = 100
    [model]
    type = "linear"
    path = "model.npz"
    [sink.scores]
    type = "file"
    path = "out/s.{format}"
    {options}
    [http]
    listen = "127.0.0.1:0"
    """


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("csv", 'format = "csv"\nrotate = { max_bytes = "100KiB", max_age = "1h" }'),
        ("arrow", 'format = "arrow"\ncompression = "zstd"\nrotate = { max_bytes = "50KiB" }'),
        ("parquet", 'format = "parquet"'),
    ],
)
def test_a_daemon_writes_what_its_config_says(
    taxi: tuple[Path, list[Score]], tmp_path: Path, format: OutputFormat, options: str
) -> None:
    path, expected = taxi
    (tmp_path / "in.csv").write_bytes(path.read_bytes())
    np.savez(tmp_path / "model.npz", weights=np.full(1, 1 / 3), bias=0.0)
    report = run_to_end(tmp_path, CONFIG.format(format=format, options=options))
    assert report["records"]["scored"] == len(expected)
    rows = [row for one in closed_in(tmp_path / "out") for row in read(one, format)]
    assert [(str(row["id"]), str(row["value"])) for row in rows] == [(at, value) for at, _, value in expected]
    assert bits_of(np.array([float(row["score"]) for row in rows])) == bits_of(
        np.array([float(value) * (1 / 3) for _, _, value in expected])
    )


@pytest.mark.slow
def test_a_daemon_that_follows_acks_by_segment_and_completes_the_last_at_a_stop(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b"timestamp,value\na,1\nb,2\n")
    np.savez(tmp_path / "model.npz", weights=np.full(1, 2.0), bias=0.0)
    options = 'format = "parquet"\nrotate = { max_age = "100ms" }'
    config = CONFIG.format(format="parquet", options=options).replace(
        'format = "csv"', 'format = "csv"\nfollow = true', 1
    )
    with running(tmp_path, config + '[delivery]\ncheckpoint_interval = "10ms"') as daemon:
        out = tmp_path / "out"
        daemon.until(lambda: (out / "s-00000001.parquet").exists(), "a quiet segment is closed")
        daemon.until(lambda: daemon.status()["records"]["unacked"] == 0, "its records are acked")
        with (tmp_path / "in.csv").open("ab") as file:
            file.write(b"c,3\n")
        daemon.until(lambda: daemon.status()["records"]["received"] == 3, "the next record is there")
        assert daemon.stop(signal.SIGTERM) == 0
        assert daemon.report["records"]["scored"] == 3
    rows = [row for path in closed_in(out) for row in read(path, "parquet")]
    assert rows == [{"id": at, "score": 2.0 * value, "value": value} for at, value in (("a", 1), ("b", 2), ("c", 3))]
    assert not list(out.glob("*.open"))


def test_pyarrow_is_imported_only_where_it_is_needed() -> None:
    uses = "import sys, streambatch as sb; sb.FileSink('s.jsonl', rotate={'max_age': 1}); sb.Pipeline"
    code = f"{uses}; print('pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"False\n"
