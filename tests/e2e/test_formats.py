"""The same records in every format and compression: the same scores, bit for bit; and a file larger than memory."""

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import anyio
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import zstandard

from streambatch import (
    BatchPolicy,
    FileSink,
    FileSource,
    LinearModel,
    Pipeline,
    RecordSchema,
    RunReport,
    Standardize,
)

RSS_MAX = 300 << 20
MEAN, SCALE = 15_137.5, 6_939.5
Format = Literal["jsonl", "csv", "arrow", "parquet"]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}


def _csv(raw: bytes, table: Any) -> bytes:
    return raw


def _jsonl(raw: bytes, table: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in table.to_pylist())


def _stream(raw: bytes, table: Any) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, 1000)
    return out.getvalue()


def _file(raw: bytes, table: Any) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def _parquet(raw: bytes, table: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=3000)
    return out.getvalue()


WRITERS: dict[str, tuple[Format, Callable[[bytes, Any], bytes]]] = {
    "csv": ("csv", _csv),
    "jsonl": ("jsonl", _jsonl),
    "arrow-stream": ("arrow", _stream),
    "arrow-file": ("arrow", _file),
    "parquet": ("parquet", _parquet),
}


@pytest.fixture(scope="module")
def taxi() -> tuple[bytes, Any]:
    """Return the data as it is, and as a table."""
    raw = (Path(__file__).parents[1] / "data/nab/nyc_taxi.csv").read_bytes()
    options = pa.csv.ConvertOptions(column_types={"timestamp": pa.string()})
    return raw, pa.csv.read_csv(io.BytesIO(raw), convert_options=options)


def score(path: Path, target: Path, format: Format) -> RunReport:
    pipeline = Pipeline(
        sources=[FileSource(str(path), format=format)],
        record=RecordSchema(id="timestamp", features=["value"], dtype="float64", carry=["value"]),
        batch=BatchPolicy(max_records=512, max_wait=10),
        preprocess=[Standardize([MEAN], [SCALE])],
        model=LinearModel(np.array([1 / 3]), 0.1),
        sink=FileSink(str(target)),
    )
    return anyio.run(pipeline.run)


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_and_compression_gives_the_same_scores(
    taxi: tuple[bytes, Any], name: str, packed: str, tmp_path: Path
) -> None:
    raw, table = taxi
    format, write = WRITERS[name]
    (tmp_path / "in").write_bytes(PACKERS[packed](write(raw, table)))
    report = score(tmp_path / "in", tmp_path / "out", format)
    assert report.records["scored"] == report.records["received"] == len(table)
    assert (report.batches["size"], report.batches["flush"]) == (len(table) // 512, 1)
    lines = [json.loads(line) for line in (tmp_path / "out").read_bytes().splitlines()]
    assert [line["id"] for line in lines] == table["timestamp"].to_pylist()
    assert [float(line["value"]) for line in lines] == table["value"].to_pylist()
    standardized = (table["value"].to_numpy().astype(np.float64) - MEAN) / SCALE
    expected = [
        part.reshape(-1, 1).dot(np.array([1 / 3])) + 0.1 for part in np.split(standardized, range(512, len(table), 512))
    ]
    assert [line["score"] for line in lines] == np.concatenate(expected).tolist()


@pytest.mark.parametrize("packed", PACKERS)
def test_members_that_follow_each_other_are_one_file(taxi: tuple[bytes, Any], packed: str, tmp_path: Path) -> None:
    raw, table = taxi
    for name in ("csv", "arrow-stream", "parquet"):
        format, write = WRITERS[name]
        data, pack = write(raw, table), PACKERS[packed]
        cuts = [0, 1, len(data) // 3, len(data) // 2, len(data)]
        members = [pack(data[start:stop]) for start, stop in pairwise(cuts)]
        (tmp_path / name).write_bytes(b"".join(members))
        report = score(tmp_path / name, tmp_path / f"{name}.out", format)
        assert report.records["scored"] == len(table)
    assert (tmp_path / "arrow-stream.out").read_bytes() == (tmp_path / "parquet.out").read_bytes()


def test_rows_that_die_are_dead_letters_with_their_row(tmp_path: Path) -> None:
    table = pa.table({"timestamp": ["a", "b", None, "d"], "value": pa.array([1.0, None, 2.0, float("inf")])})
    (tmp_path / "in").write_bytes(_parquet(b"", table))
    pipeline = Pipeline(
        sources=[FileSource(str(tmp_path / "in"), format="parquet")],
        record=RecordSchema(id="timestamp", features=["value"], dtype="float64"),
        model=LinearModel(np.ones(1), 0.0),
        sink=FileSink(str(tmp_path / "out")),
        state_dir=tmp_path / "state",
    )
    report = anyio.run(pipeline.run)
    assert (report.records["scored"], report.records["dead_lettered"]) == (1, 3)
    letters = [json.loads(line) for line in (tmp_path / "state/dead_letters.jsonl").read_bytes().splitlines()]
    assert [(letter["position"], letter["reason"]) for letter in letters] == [
        (2, "missing_field"), (3, "missing_field"), (4, "not_finite"),
    ]  # fmt: skip
    assert [json.loads(letter["record"])["timestamp"] for letter in letters] == ["b", None, "d"]


def test_a_step_and_a_model_may_write_to_what_they_are_given(tmp_path: Path) -> None:
    class Model:
        name = "in place"

        def score(self, x: Any) -> Any:
            x *= 2
            return x[:, 0]

    def step(x: Any) -> Any:
        x += 1
        return x

    (tmp_path / "in").write_bytes(_stream(b"", pa.table({"x": pa.array([1.0, 2.0], pa.float32())})))
    for steps, expected in (([], [2, 4]), ([step], [4, 6])):
        pipeline = Pipeline(
            sources=[FileSource(str(tmp_path / "in"), format="arrow")],
            record=RecordSchema(features=["x"], shape=(1,)),
            preprocess=steps,
            model=Model(),
            sink=FileSink(str(tmp_path / "out"), if_exists="replace"),
        )
        anyio.run(pipeline.run)
        lines = (tmp_path / "out").read_bytes().splitlines()
        assert [json.loads(line)["score"] for line in lines] == expected


_MAKE = """
import sys, numpy as np, pyarrow as pa, pyarrow.parquet as pq
rows, groups = 1 << 20, 22
numbers = np.random.default_rng(1).random(rows * 10, dtype=np.float32)
schema = pa.schema({"id": pa.int64(), "features": pa.list_(pa.float32(), 10)})
with pq.ParquetWriter(sys.argv[1], schema, compression="none", use_dictionary=False) as writer:
    for group in range(groups):
        ids = np.arange(group * rows, (group + 1) * rows)
        features = pa.FixedSizeListArray.from_arrays(pa.array(numbers), 10)
        writer.write_table(pa.table([ids, features], schema=schema), row_group_size=rows)
"""

_SCORE = """
import sys, anyio, numpy as np
from pathlib import Path
from streambatch import (
    BatchPolicy,
    FileSource,
    LinearModel,
    Pipeline,
    RecordSchema,
    Standardize,
    Workers,
)
from streambatch.connectors.memory.none import NoneSink
pipeline = Pipeline(
    sources=[FileSource(sys.argv[1], format="parquet")],
    record=RecordSchema(id="id", features="features", shape=(10,)),
    batch=BatchPolicy(max_records=16384),
    preprocess=[Standardize(np.zeros(10), np.ones(10))],
    model=LinearModel(np.ones(10), 0.0),
    sink=NoneSink(),
)
report = anyio.run(pipeline.run)
status = Path("/proc/self/status").read_text()
print(report.records["scored"], int(status.partition("VmHWM:")[2].split()[0]) << 10)
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_parquet_file_of_1_gb_in_less_than_300_mb(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    subprocess.run([sys.executable, "-c", _MAKE, str(path)], check=True, timeout=90)
    assert path.stat().st_size > 1_000_000_000
    output = subprocess.run(
        [sys.executable, "-c", _SCORE, str(path)], check=True, timeout=120, stdout=subprocess.PIPE
    ).stdout
    path.unlink()
    scored, rss = map(int, output.split())
    assert scored == 22 << 20
    assert rss < RSS_MAX
