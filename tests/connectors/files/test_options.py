"""Sources and sinks of files are options: one set of them makes any number of running parts, in any process."""

import multiprocessing
import pickle
from pathlib import Path

import anyio
import numpy as np

import streambatch as sb
from streambatch.core.parts import Site
from streambatch.storage.segments import Rotation

RECORDS = [b'{"id": %d, "features": [%d.0]}\n' % (number, number) for number in range(30)]


def scored(source: sb.FileSource, sink: sb.FileSink) -> int:
    """Run a pipeline. Returns how many records it scored."""
    pipeline = sb.Pipeline(
        sources=[source],
        record=sb.RecordSchema(features="features", shape=(1,)),
        model=sb.LinearModel(np.ones((1, 1), np.float32), np.zeros(1, np.float32)),
        sink=sink,
    )
    return anyio.run(pipeline.run).records["scored"]


def scored_from(options: bytes) -> int:
    source, sink = pickle.loads(options)
    return scored(source, sink)


def parts(folder: Path) -> tuple[sb.FileSource, sb.FileSink]:
    (folder / "in.jsonl").write_bytes(b"".join(RECORDS))
    source = sb.FileSource(f"{folder}/*.jsonl")
    return source, sb.FileSink(str(folder / "out" / "scores.jsonl"), if_exists="append", rotate=Rotation(max_bytes=400))


def test_pipelines_run_one_after_the_other_from_one_set_of_options(tmp_path: Path) -> None:
    source, sink = parts(tmp_path)
    assert [scored(source, sink) for _ in range(2)] == [30, 30]
    lines = [line for path in sorted(tmp_path.glob("out/*")) for line in path.read_bytes().splitlines()]
    assert len(lines) == 60
    assert lines[:30] == lines[30:]


def test_pickled_they_are_the_same_options(tmp_path: Path) -> None:
    source, sink = parts(tmp_path)
    scored(source, sink)
    assert pickle.loads(pickle.dumps((source, sink))) == (source, sink)
    assert vars(source).keys() == vars(sb.FileSource("a")).keys(), "what ran left something in the options"
    assert vars(sink).keys() == vars(sb.FileSink("a")).keys(), "what ran left something in the options"


def test_another_process_builds_the_same_parts(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(scored_from, (pickle.dumps(parts(tmp_path)),)) == 30


def test_each_build_is_a_part_of_its_own(tmp_path: Path) -> None:
    source, sink = parts(tmp_path)
    readers, writers = [source.build(Site()) for _ in range(2)], [sink.build(Site()) for _ in range(2)]
    assert readers[0] is not readers[1]
    readers[0].resume({})

    async def only_the_first_is_open() -> None:
        await writers[0].open(b"")
        await writers[0].write(b"1\n")
        assert (writers[0].mark()["length"], writers[1].mark()["length"]) == (2, 0)
        await writers[0].close()

    anyio.run(only_the_first_is_open)
