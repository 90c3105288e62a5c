"""`streambatch state`: show how far each source was read, or forget it on purpose."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import typer

from streambatch.cli.printing import print_json, print_rows
from streambatch.config.assemble import load_config
from streambatch.config.config import Config
from streambatch.core.clock import rfc3339
from streambatch.core.errors import StateError
from streambatch.core.text import shortened
from streambatch.core.units import format_size
from streambatch.durability.store.database import FILE_NAME
from streambatch.durability.store.store import StateStore
from streambatch.durability.stored import RunSummary, StoredState
from streambatch.spool.spooled import FOLDER as SPOOLS
from streambatch.storage.folder import StateFolder, held_by

NOTES_SHOWN = 60
"""Characters of a partition's notes printed without --json."""


def show_state(path: Path, overrides: Sequence[str], *, is_json: bool) -> int:
    """Print the last checkpoint. A pipeline may run meanwhile. Returns the exit code.

    Raises StreambatchError for a config or state that can't be read.
    """
    config = load_config(path, overrides=overrides)
    folder = config.state_dir
    if not (folder / FILE_NAME).exists():
        if is_json:
            print_json(None)
        else:
            print_rows([("state", f"{folder}: none yet")])
        return 0
    with StateStore.read(folder) as store:
        state, runs = store.load(), store.runs()
    last = runs[-1] if runs else None
    holder = held_by(folder)
    if is_json:
        print_json(_as_data(folder, state, last, holder))
    else:
        print_rows(_described(config, state, last, holder))
    return 0


def reset_state(path: Path, overrides: Sequence[str], source: str | None, *, is_sure: bool) -> int:
    """Forget the state of one source, or of all sources and outputs. Returns the exit code.

    Raises HeldError while a pipeline runs, StateError for a source without state.
    """
    config = load_config(path, overrides=overrides)
    if not (config.state_dir / FILE_NAME).exists():
        print_rows([("state", f"{config.state_dir}: none yet; nothing to forget")])
        return 0
    # Locks the folder: a running pipeline would store its positions again.
    with StateFolder(config.state_dir), StateStore(config.state_dir) as store:
        store.open()
        _check_known(store, source)
        spool = config.state_dir / SPOOLS / (source or "")
        # Measured before the question, which names what will be lost.
        waiting = sum(file.stat().st_size for file in spool.rglob("*.seg"))
        if not is_sure and not _confirmed(config.state_dir, source, waiting):
            print("nothing was forgotten", file=sys.stderr)
            return 1
        # Before the spool goes: a kill in between leaves records to read again, and not positions without records.
        store.reset(source)
        shutil.rmtree(spool, ignore_errors=True)
    print(f"forgotten: {_what(source)}; the next run reads {'it' if source else 'everything'} from the beginning")
    if waiting:
        print(f"removed: {spool}, with {format_size(waiting)}")
    return 0


def _check_known(store: StateStore, source: str | None) -> None:
    """Raise StateError for a source without state, before the question whether to forget it."""
    known = _sources_of(store.load())
    if source is not None and source not in known:
        raise StateError(store.path, f"found no source {source}; those with state: {', '.join(known) or 'none'}")


def _confirmed(folder: Path, source: str | None, waiting: int) -> bool:
    if not sys.stdin.isatty():
        raise StateError(folder, f"--yes is needed to forget {_what(source)} without a terminal to ask on")
    spooled = f" What waits in its spool ({format_size(waiting)}) will be lost." if waiting else ""
    return typer.confirm(f"Forget {_what(source)} in {folder}? What was read will be read again.{spooled}", err=True)


def _what(source: str | None) -> str:
    return f"how far source {source} has come" if source else "how far all sources and outputs have come"


def _described(
    config: Config, state: StoredState, last: RunSummary | None, holder: str | None
) -> Iterator[tuple[str, str]]:
    """Yield the state as rows of a word and a text."""
    yield "state", f"{config.state_dir}{f', held by process {holder}' if holder else ''}"
    yield "checkpoint", rfc3339(state.checkpointed_at) if state.checkpointed_at is not None else "none yet"
    if last is not None:
        yield "last run", f"{last.run}: {last.why.replace('_', ' ')}{f', {last.error}' if last.error else ''}"
    names = {part.options.name for part in config.sources}
    for source in _sources_of(state):
        partitions = state.partitions.get(source, {})
        gone = "" if source in names else ", not in the config any more"
        counts = state.counts.get(source)
        done = f", {counts.scored} scored, {counts.dead_lettered} dead" if counts else ""
        yield "source", f"{source}: {len(partitions)} partitions{done}{gone}"
        for name, saved in sorted(partitions.items()):
            notes = _short(saved.notes)
            yield "", f"{name}: position {saved.position}, {saved.records} records{f', {notes}' if notes else ''}"
    for output, mark in sorted(state.outputs.items()):
        yield "output", f"{output}: {_short(mark)}"


def _sources_of(state: StoredState) -> list[str]:
    return sorted({*state.readings, *state.partitions})


def _short(notes: Mapping[str, Any]) -> str:
    return shortened(", ".join(f"{key} {value}" for key, value in notes.items()), NOTES_SHOWN)


def _as_data(folder: Path, state: StoredState, last: RunSummary | None, holder: str | None) -> dict[str, Any]:
    sources = {
        source: {
            "reading": state.readings.get(source),
            "counts": msgspec.to_builtins(state.counts.get(source)),
            "partitions": {
                name: msgspec.to_builtins(saved) for name, saved in sorted(state.partitions.get(source, {}).items())
            },
        }
        for source in _sources_of(state)
    }
    return {
        "state_dir": str(folder),
        "held_by": holder,
        "checkpointed": rfc3339(state.checkpointed_at) if state.checkpointed_at is not None else None,
        "next_batch": state.next_batch,
        "sources": sources,
        "outputs": dict(sorted(state.outputs.items())),
        "last_run": None if last is None else run_data(last),
    }


def run_data(run: RunSummary) -> dict[str, Any]:
    """Return a summary of a run, for JSON."""
    return {
        "run": run.run,
        "started": rfc3339(run.started),
        "ended": None if run.ended is None else rfc3339(run.ended),
        "why": run.why,
        "error": run.error,
        "checkpoints": run.checkpoints,
        "counts": msgspec.to_builtins(run.counts),
    }
