"""How far a daemon has come, told from its checkpoints."""

from __future__ import annotations

from pathlib import Path

from streambatch.durability.store.store import StateStore
from tests.faults.nursery import Child


def done(folder: Path) -> int:
    """Return how many records are in a checkpoint."""
    if not (folder / "state/state.sqlite3").exists():
        return 0
    with StateStore.read(folder / "state") as store:
        return sum(each.scored + each.dead_lettered for each in store.load().counts.values())


def caught_up(folder: Path, child: Child, expected: int) -> None:
    """Wait until a daemon has done so many."""
    child.until(lambda: done(folder) >= expected, f"{expected} are done")
