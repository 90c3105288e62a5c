"""The simulated disk: what a crash may leave, and what it never may."""

import os
from pathlib import Path

from tests.simulated_disk import SimulatedDisk, Tree


def left(disk: SimulatedDisk, note: object = None) -> list[Tree]:
    return [crash.tree for crash in disk.crashes(per_step=10_000) if crash.note == note]


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def test_what_is_not_synced_may_be_torn_zeroed_or_missing_and_its_name_too(tmp_path: Path) -> None:
    with SimulatedDisk(tmp_path) as disk:
        (tmp_path / "a").write_bytes(b"12345")
    assert {tree.get("a") for tree in left(disk)} == {None, b"", b"1", b"12", b"1234", b"12345", b"\0\0\0\0\0"}


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"deep")
    with SimulatedDisk(tmp_path) as disk:
        with (tmp_path / "a").open("ab") as file:
            file.write(b"+")
    assert {(tree["a"], tree["sub/b"]) for tree in left(disk)} == {
        (b"old", b"deep"), (b"old+", b"deep"), (b"old\0", b"deep")
    }  # fmt: skip


def test_a_synced_file_has_its_bytes_but_lacks_its_name_until_the_folder_is_synced(tmp_path: Path) -> None:
    with SimulatedDisk(tmp_path) as disk:
        with (tmp_path / "a").open("wb") as file:
            file.write(b"all")
            file.flush()
            os.fsync(file.fileno())
            disk.note = "file"
            disk.look()
            sync_folder(tmp_path)
            disk.note = "both"
            disk.look()
            file.write(b"more")
    assert {tree.get("a") for tree in left(disk, "file")} == {None, b"all"}
    assert {tree["a"] for tree in left(disk, "both")} >= {b"all", b"allmore", b"allm"}
    assert all((tree["a"] or b"").startswith(b"all") for tree in left(disk, "both"))


def test_a_rename_is_whole_or_not_and_overwrites_as_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"A")
    (tmp_path / "b").write_bytes(b"B")
    with SimulatedDisk(tmp_path) as disk:
        os.replace(tmp_path / "a", tmp_path / "b")
        disk.note = "renamed"
        sync_folder(tmp_path)
        disk.note = "synced"
        disk.look()
    assert [tree for tree in left(disk, "renamed") if tree not in ({"a": b"A", "b": b"B"}, {"b": b"A"})] == []
    assert len(left(disk, "renamed")) == 2
    assert left(disk, "synced") == [{"b": b"A"}]


def test_operations_may_happen_in_any_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    with SimulatedDisk(tmp_path) as disk:
        (tmp_path / "a").unlink()
        (tmp_path / "b").unlink()
        (tmp_path / "c").mkdir()
    assert {tuple(sorted(tree)) for tree in left(disk)} == {
        ("a", "b"), ("a",), ("b",), (), ("a", "b", "c"), ("a", "c"), ("b", "c"), ("c",)
    }  # fmt: skip


def test_a_cut_may_be_undone_and_mixed_with_what_was_written_after_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    with SimulatedDisk(tmp_path) as disk:
        os.truncate(path, 2)
        with path.open("ab") as file:
            file.write(b"x")
    assert {tree["a"] for tree in left(disk)} == {b"12345", b"12", b"12x", b"12x45", b"12\0"}


def test_a_new_folder_is_lost_with_all_in_it_until_its_parent_is_synced(tmp_path: Path) -> None:
    with SimulatedDisk(tmp_path) as disk:
        (tmp_path / "sub").mkdir()
        with (tmp_path / "sub" / "a").open("wb", buffering=0) as file:
            file.write(b"x")
            os.fsync(file.fileno())
        sync_folder(tmp_path / "sub")
        disk.note = "inner"
        disk.look()
        sync_folder(tmp_path)
        disk.note = "outer"
        disk.look()
    assert left(disk, "inner") == [{}, {"sub": None, "sub/a": b"x"}]
    assert left(disk, "outer") == [{"sub": None, "sub/a": b"x"}]


def test_a_file_that_moves_to_another_folder_keeps_its_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "x").write_bytes(b"old")
    with SimulatedDisk(tmp_path) as disk:
        os.rename(tmp_path / "a" / "x", tmp_path / "b" / "x")
        sync_folder(tmp_path / "b")
        disk.note = "synced"
        disk.look()
    assert {(tree.get("a/x"), tree["b/x"]) for tree in left(disk, "synced")} == {(b"old", b"old"), (None, b"old")}


def test_a_crash_is_laid_out(tmp_path: Path) -> None:
    work, again = tmp_path / "work", tmp_path / "again"
    work.mkdir()
    with SimulatedDisk(work) as disk:
        (work / "sub").mkdir()
        (work / "sub" / "a").write_bytes(b"x")
    again.mkdir()
    (again / "other").touch()
    crash = next(crash for crash in disk.crashes() if crash.tree.get("sub/a") == b"x")
    crash.lay_out(again)
    assert [path.relative_to(again).as_posix() for path in sorted(again.rglob("*"))] == ["sub", "sub/a"]
    assert (again / "sub" / "a").read_bytes() == b"x"
