"""`streambatch runs`: list the stored runs, show the manifest of one, or verify that it still gives the same output."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio

from streambatch.cli.printing import print_json, print_rows
from streambatch.cli.state import run_data
from streambatch.config.assemble import load_config
from streambatch.core.clock import rfc3339
from streambatch.core.errors import StateError
from streambatch.durability.store.database import FILE_NAME
from streambatch.durability.store.reader import StateReader
from streambatch.durability.store.store import StateStore
from streambatch.durability.stored import RunSummary
from streambatch.ops.verify import Verification, verify_run

AGREES, DIFFERS = 0, 1
LATEST = "latest"
SHOWN = 12
"""Number of differences printed without --json."""


def list_runs(path: Path, overrides: Sequence[str], *, is_json: bool) -> int:
    """Print the stored runs, oldest first. Returns the exit code."""
    folder = load_config(path, overrides=overrides).state_dir
    runs: list[RunSummary] = []
    # Before the first run there is no state, which is no error here.
    if (folder / FILE_NAME).exists():
        with StateStore.read(folder) as store:
            runs = store.runs()
    if is_json:
        print_json([run_data(run) for run in runs])
        return AGREES
    for run in runs:
        counts = run.counts.as_records()
        done = f"{counts['scored']} scored, {counts['dead_lettered']} dead, {counts['unacked']} unacked"
        print(f"{run.run}  {rfc3339(run.started)}  {run.why.replace('_', ' '):<12}{done}")
    if not runs:
        print("none yet", file=sys.stderr)
    return AGREES


def show_run(path: Path, overrides: Sequence[str], run: str, *, is_json: bool) -> int:
    """Print a run's manifest. Returns the exit code. Raises StateError for a run that is not stored."""
    with StateStore.read(load_config(path, overrides=overrides).state_dir) as store:
        manifest = store.manifest(named_run(store, run))
    if is_json:
        print_json(manifest)
    else:
        print_rows(_described(manifest))
    return AGREES


def verify(path: Path, overrides: Sequence[str], run: str, *, is_json: bool) -> int:
    """Verify a run and print the result. Returns the exit code: 1 if something differs."""
    config = load_config(path, overrides=overrides)
    with StateStore.read(config.state_dir) as store:
        result = anyio.run(verify_run, config, store, named_run(store, run))
    if is_json:
        print_json(result)
    else:
        print_rows(_verified(result))
    return AGREES if result.verdict == "agrees" else DIFFERS


def named_run(store: StateReader, run: str) -> str:
    """Return the id of a run, which may be given as `latest`. Raises StateError if there is no run."""
    if run != LATEST:
        return run
    runs = store.runs()
    if not runs:
        raise StateError(store.path, "there is no run yet")
    return runs[-1].run


def _described(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    code, model = manifest["streambatch"], manifest["model"]
    why = manifest["why"].replace("_", " ")
    yield "run", f"{manifest['run']} of {manifest['pipeline']}"
    yield "time", f"{manifest['started']} to {manifest['ended'] or 'now'}: {why}"
    if manifest["error"]:
        yield "error", manifest["error"]
    revision = f", revision {code['revision'][:12]}" if code["revision"] else ""
    yield "code", f"streambatch {code['version']}{revision}, python {manifest['python']}, numpy {manifest['numpy']}"
    yield "config", f"sha256 {manifest['config_digest']}"
    yield "model", f"{model.get('path')}, sha256 {model.get('sha256')}"
    for name, source in manifest["sources"].items():
        counts = source["counts"]
        yield "source", f"{name}: {counts['received']} received, {counts['recovered']} recovered"
        for read in source["partitions"]:
            span = f"{read['first']} to {read['last']}, {read['records']} records, sha256 {read['sha256']}"
            yield "", f"{read['partition']}: {span}"
    for name, sink in manifest["sinks"].items():
        yield name, f"{sink.get('path') or ''} {_place(sink['from'])} to {_place(sink['to'])}".strip()
    counts = manifest["counts"]
    yield "records", ", ".join(f"{number} {count}" for count, number in counts.items() if number)


def _place(mark: Any) -> str:
    if not mark or "segment" not in mark:
        return "nothing"
    return f"segment {mark['segment']}, byte {mark['length']}"


def _verified(result: Verification) -> Iterator[tuple[str, str]]:
    counts = result.counts
    yield "run", result.run
    for name in ("same", "changed", "unknown", "gone"):
        number = sum(each.status == name for each in result.inputs)
        if number:
            yield "input", f"{number} partitions {_STATUS[name]}"
    batches, skipped = counts.get("batches", 0), counts.get("batches_skipped", 0)
    yield "batches", f"{batches}, {batches - skipped} scored again: {counts.get('batches_same', 0)} the same"
    yield "scores", f"{counts.get('scores_compared', 0)} compared bit for bit"
    for name, (recorded, found) in result.code.items():
        yield "code", f"{name}: recorded {recorded}, running {found}"
    for difference in result.differences[:SHOWN]:
        yield "differs", str(difference)
    more = sum(result.totals.values()) - min(SHOWN, len(result.differences))
    if more > 0:
        kinds = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in result.totals.items())
        yield "", f"and {more} more; in all: {kinds}"
    for note in result.notes:
        yield "note", note
    yield "verdict", result.verdict


_STATUS = {
    "same": "as they were read",
    "changed": "not as they were read",
    "unknown": "read again, without a digest to compare with",
    "gone": "that can't be read again",
}
