"""The suite for sinks notices what is wrong with a sink that does one thing wrong."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from streambatch.core.checkpoints import CommitMark, OutputMark
from streambatch.core.errors import HeldError, SinkError, SinkOutage
from streambatch.core.parts import Sink, Site, Writer
from streambatch.core.wrapping import WritingSink, as_sink
from streambatch.testing import Row, SinkConformance, conformance, rows_in
from tests.conformance.verdicts import check_noticed, failures


class Csv:
    """A sink that writes a CSV file; subclasses break it."""

    name, format = "scores", "csv"
    file: Any = None

    def __init__(self, path: Path) -> None:
        self.path = path

    async def open(self, header: bytes) -> None:
        is_fresh = not self.path.exists()
        self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        if is_fresh:
            self.file.write(header)

    async def write(self, payload: bytes) -> None:
        if self.path.with_name("broken").exists():
            raise SinkError(self.name, "it is broken")
        await anyio.lowlevel.checkpoint()
        self.file.write(payload)

    async def sync(self) -> int:
        os.fsync(self.file.fileno())
        return int(self.file.tell())

    async def close(self) -> None:
        if self.file is not None:
            self.file.close()


class Loses(Csv):
    async def write(self, payload: bytes) -> None:
        await super().write(b"".join(payload.splitlines(keepends=True)[:-1]))


class Doubles(Csv):
    async def write(self, payload: bytes) -> None:
        await super().write(payload)
        if payload.startswith(b"100,"):
            await super().write(payload)


class Swaps(Csv):
    """Writes the batch before this one."""

    held = b""

    async def write(self, payload: bytes) -> None:
        first, _, rest = payload.partition(b"\n")
        await super().write(rest + first + b"\n")


class RepeatsHeader(Csv):
    async def open(self, header: bytes) -> None:
        await super().open(header)
        self.file.write(header)


class Buffers(Csv):
    """Hands nothing over before it is closed."""

    async def open(self, header: bytes) -> None:
        self.held = [header]

    async def write(self, payload: bytes) -> None:
        self.held.append(payload)

    async def sync(self) -> int:
        return sum(map(len, self.held))

    async def close(self) -> None:
        if self.path.parent.exists() and hasattr(self, "held"):
            self.path.write_bytes(b"".join(self.held))


class SyncsToNothing(Csv):
    async def sync(self) -> int:
        return None  # type: ignore[return-value]


class StandsStill(Csv):
    async def sync(self) -> int:
        return 7


class Shrinks(Csv):
    async def sync(self) -> int:
        return 10**9 - await super().sync()


class ClosesOnce(Csv):
    async def close(self) -> None:
        self.file.close()
        self.file = None


class LeavesItOpen(Csv):
    async def close(self) -> None:
        LEFT.append(self)


LEFT: list[Csv] = []


class RaisesOsError(Csv):
    async def write(self, payload: bytes) -> None:
        if self.path.with_name("broken").exists():
            raise OSError("disk full")
        await super().write(payload)


class SaysNothing(Csv):
    async def write(self, payload: bytes) -> None:
        if not self.path.with_name("broken").exists():
            await super().write(payload)


class WritesHalfAndFails(Csv):
    async def write(self, payload: bytes) -> None:
        if self.path.with_name("broken").exists():
            self.file.write(payload[: payload.index(b"\n") + 1])
        await super().write(payload)


class TearsWhenCancelled(Csv):
    async def write(self, payload: bytes) -> None:
        half = len(payload) // 2
        self.file.write(payload[:half])
        await anyio.lowlevel.checkpoint()
        self.file.write(payload[half:])


class Overwrites(Csv):
    """Starts anew without removing what is there."""

    async def open(self, header: bytes) -> None:
        if not self.path.exists():
            self.path.touch()
        self.file = open(self.path, "r+b", buffering=0)  # noqa: SIM115
        self.file.write(header)


class TellsNoOutage(Csv):
    """Says of a file that is away for a while that it is broken."""

    async def write(self, payload: bytes) -> None:
        if self.path.with_name("away").exists():
            raise SinkError(self.name, "it is away")
        await super().write(payload)


class StaysAway(Csv):
    """Never notices that an outage is over."""

    is_away = False

    async def write(self, payload: bytes) -> None:
        if self.is_away or self.path.with_name("away").exists():
            self.is_away = True
            raise SinkOutage(self.name, "it is away")
        await super().write(payload)


class LosesInOutage(Csv):
    """Says that it wrote what it lost."""

    async def write(self, payload: bytes) -> None:
        if not self.path.with_name("away").exists():
            await super().write(payload)


class OpensOnce(StaysAway):
    """Can't be opened again after an outage."""

    async def open(self, header: bytes) -> None:
        await self.write(b"")
        await super().open(header)


class LosesTheSecond(Csv):
    """Keeps one batch, whatever the others are called."""

    has_one = False

    async def write_batch(self, payload: bytes, batch_id: str) -> None:
        if not self.has_one:
            await self.write(payload)
        self.has_one = True


class WritesInSync(Csv):
    """Keeps payloads until sync, and mixes them up when a write comes in between."""

    held = b""

    async def write(self, payload: bytes) -> None:
        self.held += payload

    async def sync(self) -> int:
        held = self.held
        await anyio.sleep(0.001)
        self.held = b""
        self.file.write(held)
        return await super().sync()


class RightCsv(Csv):
    async def write(self, payload: bytes) -> None:
        if self.path.with_name("away").exists():
            raise SinkOutage(self.name, "it is away")
        await super().write(payload)


class Overtakes(RightCsv):
    """What a cancelled write had sent arrives when the sink is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.late: list[bytes] = []

    async def write(self, payload: bytes) -> None:
        try:
            await super().write(payload)
        except anyio.get_cancelled_exc_class():
            self.late.append(payload)
            raise

    async def close(self) -> None:
        for payload in self.late:
            self.file.write(payload)
        self.late.clear()
        await super().close()


class Rewinds(RightCsv):
    """Can be taken back; subclasses break it."""

    saved: OutputMark | None = None
    commit: CommitMark

    def restore(self, mark: OutputMark | None, commit: CommitMark) -> None:
        self.saved, self.commit = mark, commit

    def mark(self) -> OutputMark:
        return {"length": self.file.tell()}

    async def open(self, header: bytes) -> None:
        if self.saved is None and hasattr(self, "commit"):
            await self.commit({"length": 0})
        if self.saved is not None:
            self.cut(self.saved["length"])
        await super().open(header)

    def cut(self, length: int) -> None:
        if length:
            os.truncate(self.path, length)
        else:
            self.path.unlink(missing_ok=True)


class StaysWhereItIs(Rewinds):
    def cut(self, length: int) -> None: ...


class StartsAnew(Rewinds):
    def cut(self, length: int) -> None:
        self.path.unlink(missing_ok=True)


class CountsTooLittle(Rewinds):
    def mark(self) -> OutputMark:
        return {"length": self.file.tell() // 2}


class HasNoMarkAtFirst(Rewinds):
    async def open(self, header: bytes) -> None:
        if self.saved is None and self.path.exists() and hasattr(self, "commit"):
            raise HeldError(f"{self.path} is there")
        if self.saved is not None:
            self.cut(self.saved["length"])
        await Csv.open(self, header)


class CanNotBePickled(Csv):
    def __getstate__(self) -> Any:
        raise TypeError("it holds a socket")


class IsUsedUp(Sink):
    """Builds writers that share a file which only the first finds open."""

    name, format = "scores", "csv"

    def __init__(self, path: Path) -> None:
        self.path, self.is_used = path, False

    def build(self, site: Site) -> Writer:
        writer: Writer = as_sink(Loses(self.path) if self.is_used else Csv(self.path)).build(site)
        self.is_used = True
        return writer


class Suite(SinkConformance):
    def __init__(self, make: Callable[[Path], Any]) -> None:
        self.make = make

    def make_sink(self, folder: Path) -> Sink | WritingSink:
        sink: Sink | WritingSink = self.make(folder / "scores.csv")
        return sink

    def read_rows(self, folder: Path) -> list[Row]:
        return rows_in((folder / "scores.csv").read_bytes(), "csv")

    def break_output(self, folder: Path) -> None:
        (folder / "broken").touch()

    def mend_output(self, folder: Path) -> None:
        (folder / "broken").unlink()

    @asynccontextmanager
    async def outage(self, folder: Path) -> AsyncIterator[None]:
        (folder / "away").touch()
        yield
        (folder / "away").unlink()


@pytest.mark.parametrize("sink", [RightCsv, Rewinds])
def test_a_right_one_passes(tmp_path: Path, sink: Callable[[Path], Any]) -> None:
    assert failures(Suite(sink), tmp_path) == {}


class OverNetwork(Suite):
    overtakes = True


def test_one_whose_cancelled_writes_arrive_late_passes_if_it_says_so(tmp_path: Path) -> None:
    assert failures(OverNetwork(Overtakes), tmp_path) == {}


def unnamed(path: Path) -> Csv:
    sink = Csv(path)
    sink.name = ""
    return sink


ORDER, AGAIN = "rows_are_written_whole_and_in_order", "a_write_that_failed_can_be_repeated"
TORN = "a_cancelled_write_tears_no_row"
OUTAGE = "an_outage_is_told_and_the_same_write_goes_through_after_it"
BACK, GOES_ON = "it_can_be_taken_back_to_a_mark", "it_goes_on_from_the_mark_it_was_completed_with"
TWICE = "its_options_are_pickled_and_build_one_writer_after_the_other"
LENGTH = "sync_returns_a_length_that_never_shrinks"


@pytest.mark.parametrize(
    ("sink", "test", "saying"),
    [
        (unnamed, "it_says_what_it_is", "name is empty"),
        (Loses, ORDER, "they differ from row 49 on"),
        (Doubles, ORDER, "they differ from row 150 on"),
        (Swaps, ORDER, "they differ from row 0 on"),
        (RepeatsHeader, "an_output_without_rows_is_one", "ValueError"),
        (Buffers, "what_was_synced_can_be_read", "No such file"),
        (SyncsToNothing, LENGTH, "sync returned None; expected bytes, as an integer"),
        (StandsStill, LENGTH, "the length stays 7"),
        (Shrinks, LENGTH, "the length shrinks"),
        (WritesInSync, "sync_and_write_may_overlap", "they differ from row"),
        (ClosesOnce, "close_may_be_called_twice_and_without_open", "AttributeError"),
        (Overwrites, "an_output_that_is_there_is_kept_or_replaced_as_a_whole", ""),
        (TearsWhenCancelled, TORN, ""),
        (Overtakes, TORN, "they differ from row 5 on"),
        (RaisesOsError, AGAIN, "expected a SinkError, found OSError('disk full')"),
        (TellsNoOutage, OUTAGE, "expected a SinkOutage, found SinkError('sink scores: it is away')"),
        (StaysAway, OUTAGE, "SinkOutage: sink scores: it is away"),
        (LosesInOutage, OUTAGE, "the other side is away, and 100 writes say nothing"),
        (OpensOnce, "it_can_be_opened_when_an_outage_is_over", "SinkOutage: sink scores: it is away"),
        (LosesTheSecond, "a_batch_may_come_twice_under_its_id", "150 rows were written, 50 different ones came"),
        (SaysNothing, AGAIN, "the output is broken, and write says nothing"),
        (WritesHalfAndFails, AGAIN, "they differ from row 6 on"),
        (StaysWhereItIs, BACK, "they differ from row"),
        (StartsAnew, BACK, "they differ from row"),
        (CountsTooLittle, BACK, ""),
        (HasNoMarkAtFirst, BACK, "is there"),
        (StartsAnew, GOES_ON, "rows in the output"),
        (CanNotBePickled, TWICE, "CanNotBePickled can't be pickled: it holds a socket"),
        (IsUsedUp, TWICE, "expected old and new rows, or new ones alone"),
    ],
)
def test_a_wrong_one_is_noticed(tmp_path: Path, sink: Callable[[Path], Any], test: str, saying: str) -> None:
    check_noticed(Suite(sink), tmp_path, test, saying)


def test_one_that_tears_rows_is_noticed_over_a_network_too(tmp_path: Path) -> None:
    check_noticed(OverNetwork(TearsWhenCancelled), tmp_path, TORN, "")


def test_one_that_stays_open_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "SETTLE_ROUNDS", 5)
    check_noticed(Suite(LeavesItOpen), tmp_path, ORDER, "LeavesItOpen leaves open: {('")
    while LEFT:
        LEFT.pop().file.close()
