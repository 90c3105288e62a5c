"""Followed links that lead into another folder: their files are looked for there, whoever is rotated or swapped."""

import os
from pathlib import Path
from typing import Any

import pytest

from streambatch.connectors.files import follow, searching
from streambatch.connectors.files.globs import Home, folder_device, folders_of, home_of, look
from streambatch.connectors.files.identity import identity_of
from streambatch.connectors.files.notes import FileNotes, KnownFile
from streambatch.connectors.files.source import FileSource
from tests.connectors.files.filing import FileIntake, following
from tests.connectors.files.test_follow import append, open_files_below
from tests.connectors.files.test_resume import Runs, by_name

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.01)


@pytest.fixture
def links(tmp_path: Path) -> Path:
    """A folder of links; what they lead to is in `pods`, beside it."""
    (tmp_path / "links").mkdir()
    (tmp_path / "pods").mkdir()
    return tmp_path / "links"


def linked(links: Path, name: str, raw: bytes) -> Path:
    """Write a file to which a link leads. Returns the file."""
    target = links.parent / "pods" / name
    target.write_bytes(raw)
    (links / f"{name}.log").symlink_to(f"../pods/{name}")
    return target


def runs_of(links: Path, **options: Any) -> Runs:
    return Runs(links / "*.log", **{"follow": True, "rotate_wait": 0.1, **options})


async def test_rotated_while_stopped(links: Path) -> None:
    target, runs = linked(links, "0", b"1\n2\n"), runs_of(links)
    await runs.follow(2)
    append(target, b"3\nlast")
    target.rename(target.with_name("0.1"))
    target.write_bytes(b"4\n")
    intake = await runs.follow(3, event="completed")
    assert by_name(intake) == {"0.log": [b"3", b"last"], "0.log#2": [b"4"]}
    assert list(runs.acked.saved()) == [f"{links}/0.log#2"]


async def test_what_reads_a_file_again_finds_it_there(links: Path) -> None:
    target, runs = linked(links, "0", b"1\n2\n"), runs_of(links)
    await runs.follow(2)
    ((partition, saved),) = runs.acked.saved().items()
    target.rename(target.with_name("0.1"))
    found = runs.source().archive().find(partition, saved.notes)
    assert found is not None
    assert found.location == str(target.with_name("0.1"))
    assert b"".join(bytes(chunk.data()) for chunk in found.chunks(0, saved.position)) == b"1\n2\n"


async def test_rotated_and_stopped_again_before_its_end(links: Path) -> None:
    """Its name is another by then, and nothing links to that."""
    target, runs = linked(links, "0", b"1\n2\n"), runs_of(links, rotate_wait=60.0)
    await runs.follow(2)
    append(target, b"3\n")
    target.rename(target.with_name("0.1"))
    target.write_bytes(b"4\n")
    await runs.follow(2)
    append(target.with_name("0.1"), b"5\n")
    target.with_name("0.1").rename(target.with_name("0.2"))
    assert by_name(await runs.follow(1)) == {"0.log": [b"5"]}


async def test_the_link_is_swapped_while_stopped(links: Path) -> None:
    """As when a container starts anew: the link leads to its new log, and the old one stays as it is."""
    target, runs = linked(links, "0", b"1\n2\n"), runs_of(links)
    await runs.follow(2)
    append(target, b"3\n")
    elsewhere = links.parent / "other"
    elsewhere.mkdir()
    (elsewhere / "1").write_bytes(b"4\n")
    (links / "0.log").unlink()
    (links / "0.log").symlink_to(elsewhere / "1")
    assert by_name(await runs.follow(2, event="completed")) == {"0.log": [b"3"], "0.log#2": [b"4"]}
    append(elsewhere / "1", b"5\n")
    (elsewhere / "1").rename(elsewhere / "2")
    assert by_name(await runs.follow(1, event="completed")) == {"0.log#2": [b"5"]}


async def test_a_folder_that_is_a_link_leads_elsewhere_by_now(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "log").write_bytes(b"1\n")
    (tmp_path / "now").symlink_to("a")
    runs = Runs(tmp_path / "now" / "log", follow=True, rotate_wait=0.1)
    await runs.follow(1)
    append(tmp_path / "a" / "log", b"2\n")
    (tmp_path / "b" / "log").write_bytes(b"3\n")
    (tmp_path / "now").unlink()
    (tmp_path / "now").symlink_to("b")
    assert by_name(await runs.follow(2, event="completed")) == {"log": [b"2"], "log#2": [b"3"]}


async def test_link_and_file_are_deleted_while_stopped(links: Path) -> None:
    target, runs = linked(links, "0", b"1\n"), runs_of(links)
    await runs.follow(1)
    (links / "0.log").unlink()
    target.unlink()
    target.parent.rmdir()
    for _ in range(20):  # it takes three looks, for which a busy machine may have no time in one run
        await runs.follow(0)
        if not runs.acked.saved():
            break
    assert list(runs.acked.saved()) == []


async def test_more_links_than_open_files_are_rotated(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "HANDLES_MAX", 2)
    targets = [linked(links, str(number), b"%d-1\n" % number) for number in range(8)]
    intake = FileIntake()
    async with following(FileSource(f"{links}/*.log", follow=True, rotate_wait=0.1), intake):
        await intake.holds(8)
        for number, target in enumerate(targets):
            append(target, b"%d-2\n" % number)
            target.rename(target.with_name(f"{number}.1"))
            target.write_bytes(b"%d-3\n" % number)
        await intake.holds(24)
        await intake.files.saw("completed", 8)
        assert open_files_below(links.parent / "pods") == []
    for number in range(8):
        assert by_name(intake)[f"{number}.log"] == [b"%d-1" % number, b"%d-2" % number]
        assert by_name(intake)[f"{number}.log#2"] == [b"%d-3" % number]


async def test_more_are_rotated_at_once_than_can_be_held_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those it has no room for wait for those before them; nothing is given up unsought."""
    monkeypatch.setattr(follow, "HANDLES_MAX", 2)
    monkeypatch.setattr(searching, "FOUND_AGAIN_MAX", 3)
    logs, intake = [tmp_path / f"{number:02}.log" for number in range(20)], FileIntake()
    for log in logs:
        log.write_bytes(b"%s-1\n" % log.stem.encode())
    async with following(FileSource(f"{tmp_path}/*.log", follow=True, rotate_wait=0.05), intake):
        await intake.holds(20)
        for log in logs:
            append(log, b"%s-2\n" % log.stem.encode())
            log.rename(log.with_suffix(".old"))
        await intake.holds(40)
        await intake.files.saw("completed", 20)
        for log in logs:
            log.write_bytes(b"%s-3\n" % log.stem.encode())
        await intake.holds(60)
        for log in logs:
            log.unlink()
        await intake.files.saw("deleted", 20)
        assert open_files_below(tmp_path) == []
    assert by_name(intake)["07.log"] == [b"07-1", b"07-2"]
    assert sorted(intake.lines()) == [b"%02d-%d" % (number, n) for number in range(20) for n in (1, 2, 3)]


@pytest.mark.parametrize("handles", [0, 64])
async def test_links_are_swapped_and_deleted(links: Path, monkeypatch: pytest.MonkeyPatch, handles: int) -> None:
    monkeypatch.setattr(follow, "HANDLES_MAX", handles)
    target, intake = linked(links, "0", b"1\n"), FileIntake()
    async with following(FileSource(f"{links}/*.log", follow=True, rotate_wait=0.1), intake):
        await intake.holds(1)
        other = links.parent / "1"
        other.write_bytes(b"3\n")
        append(target, b"2\n")
        (links / "new").symlink_to(other)
        (links / "new").rename(links / "0.log")
        await intake.holds(3)
        await intake.files.saw("completed")
        (links / "0.log").unlink()
        other.unlink()
        await intake.files.saw("deleted")
    assert by_name(intake) == {"0.log": [b"1", b"2"], "0.log#2": [b"3"]}
    assert intake.files.outages == []


async def test_a_target_on_a_disk_that_is_not_mounted_is_waited_for(
    links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, intake, is_mounted = linked(links, "0", b"1\n"), FileIntake(), [True]

    def device(path: str) -> int:
        return folder_device(path) if is_mounted[0] or os.path.dirname(path) != str(target.parent) else 99_999

    monkeypatch.setattr(searching, "folder_device", device)
    async with following(FileSource(f"{links}/*.log", follow=True, rotate_wait=0.1), intake):
        await intake.holds(1)
        is_mounted[0] = False
        target.rename(links.parent / "away")
        await intake.files.told(1)
        append(links.parent / "away", b"2\n")
        (links.parent / "away").rename(target)
        is_mounted[0] = True
        await intake.files.told(2)
        await intake.holds(2)
    assert by_name(intake) == {"0.log": [b"1", b"2"]}
    assert [event for _, event in intake.files.events] == ["opened"]


def test_one_of_an_earlier_run_is_not_gone_while_its_disk_is_not_mounted(links: Path) -> None:
    folder, pods = os.stat(links).st_dev, str(links.parent / "pods")
    notes = FileNotes(path=f"{links}/0.log", inode=1, folder=folder, home=pods, home_device=folder, head=1, digest="00")
    there = KnownFile("0.log", 2, True, notes, identity_of(b"x"))
    unmounted = there._replace(notes=FileNotes(path=notes.path, inode=1, folder=folder, home=pods, home_device=-1))
    assert searching.is_gone([there, unmounted]) == [there]


def test_files_that_no_link_leads_to_have_no_other_home(links: Path) -> None:
    target = linked(links, "0", b"1\n")
    stats = look("logs", [f"{links}/*", str(target)]).stats
    home = Home(str(target.parent), os.stat(target.parent).st_dev)
    homes = {path: home_of(path, stat.id) for path, stat in stats.items()}
    assert homes == {f"{links}/0.log": home, str(target): None}
    assert home_of(f"{links}/0.log", (0, 0)) is None
    assert folders_of(str(target), "") == [str(target.parent)]
    assert searching.look_at("logs", [str(target)], {}, {}).stats == {str(target): stats[str(target)]}
