"""How much input files hold that was not read: what `source_lag_bytes` and `source_files` show."""

from pathlib import Path
from typing import cast

import pytest

from streambatch.connectors.files import follow
from streambatch.connectors.files.source import FileSource
from streambatch.core.backlog import Backlog, FileState, no_files
from streambatch.core.parts import Site
from tests.connectors.files.filing import FileIntake, following

LINES = b'{"id": 1}\n' * 10
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def backlog(lag: int, **files: int) -> Backlog:
    return Backlog(lag, {**no_files(), **cast(dict[FileState, int], files)})


async def test_files_to_their_end(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(LINES)
    source, intake = FileSource(f"{tmp_path}/*").build(Site()), FileIntake()
    assert source.backlog() == backlog(0)
    seen: list[Backlog] = []
    opened = intake.observer.file_changed
    intake.observer.file_changed = lambda *event: (seen.append(source.backlog()), opened(*event))  # type: ignore[method-assign,assignment,func-returns-value]
    await source.run(intake)
    assert seen[0] == backlog(3 * len(LINES), reading=1, waiting=2)
    assert seen[2] == backlog(2 * len(LINES), done=1, reading=1, waiting=1)
    assert source.backlog() == backlog(0, done=3)


async def test_followed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.01)
    (tmp_path / "a").write_bytes(LINES)
    source, intake = FileSource(f"{tmp_path}/*", follow=True).build(Site()), FileIntake()
    async with following(source, intake):
        await intake.holds(10)
        assert source.backlog() == backlog(0, idle=1)
        (tmp_path / "b").write_bytes(LINES)
        await intake.holds(20)
        assert source.backlog() == backlog(0, idle=2)
        intake.stall()
        (tmp_path / "c").write_bytes(LINES * 40_000)
        await intake.is_waited_for()
        found = source.backlog()
        assert found.files == {**no_files(), "idle": 2, "reading": 1}
        assert 0 < found.lag_bytes < len(LINES) * 40_000
        intake.go_on()
