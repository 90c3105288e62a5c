"""The package's own tests: `pytest suites.py`, where the package and streambatch are installed."""

import resource
from collections.abc import Sequence
from pathlib import Path

from streambatch_acme import CounterSource, TaggedSink, record

from streambatch.testing import Row, SinkConformance, SourceConformance, rows_in


class TestCounter(SourceConformance):
    backends = ("asyncio", "trio")

    def make_source(self, folder: Path, records: Sequence[bytes]) -> CounterSource:
        return CounterSource(len(records))

    def record(self, number: int) -> bytes:
        return bytes(record(number))


class TestTagged(SinkConformance):
    backends = ("asyncio", "trio")

    def make_sink(self, folder: Path) -> TaggedSink:
        return TaggedSink(str(folder / "out"), tag="it is")

    def read_rows(self, folder: Path) -> list[Row]:
        lines = (folder / "out").read_bytes().splitlines(keepends=True)
        assert all(line.startswith(b"it is ") for line in lines)
        return rows_in(b"".join(line.removeprefix(b"it is ") for line in lines), "jsonl")

    def break_output(self, folder: Path) -> None:
        size = (folder / "out").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def mend_output(self, folder: Path) -> None:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
