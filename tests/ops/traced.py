"""Pipelines with a state, run in a folder, and the commands that look at what they left."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from streambatch.cli import main
from streambatch.config.assemble import load_pipeline

BASE = {
    "name": '"rides"',
    "state_dir": '"state"',
    "http.listen": '"off"',
    "source.in.type": '"file"',
    "source.in.path": '"in/*"',
    "record.id": '"id"',
    "record.features": '["a", "b"]',
    "batch.max_records": "7",
    "model.type": '"linear"',
    "model.path": '"model.npz"',
    "sink.scores.type": '"file"',
    "sink.scores.path": '"out/scores.jsonl"',
    "dead_letter.stop_at": "1",
}
Row = dict[str, Any]


def rows(start: int, count: int) -> list[Row]:
    """Return records; every eleventh lacks a feature."""
    return [
        {"id": at, "a": at / 7, **({} if at % 11 == 10 else {"b": float(at % 5)})} for at in range(start, start + count)
    ]


class Traced:
    """A folder with a pipeline."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        (folder / "in").mkdir()
        np.savez(folder / "model.npz", weights=[1.5, -0.25], bias=0.125)

    def configure(self, **changes: str) -> None:
        """Write the config. changes: TOML values, with `__` for a dot in keys."""
        config = BASE | {key.replace("__", "."): value for key, value in changes.items()}
        (self.folder / "pipeline.toml").write_text("".join(f"{key} = {value}\n" for key, value in config.items()))

    def append(self, name: str, records: Sequence[Row], *, fields: Sequence[str] | None = None) -> None:
        """Add records to an input file: JSON lines, or CSV rows if fields are given, compressed if its name says so."""
        path = self.folder / "in" / name
        if fields is None:
            text = "".join(json.dumps(record) + "\n" for record in records)
        else:
            header = ",".join(fields) + "\n" if not path.exists() else ""
            text = header + "".join(",".join(str(r.get(f, "")) for f in fields) + "\n" for r in records)
        with path.open("ab") as file:
            file.write(gzip.compress(text.encode(), mtime=0) if name.endswith(".gz") else text.encode())

    def run(self, *overrides: str, until: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any]:
        """Run the pipeline to its end, or until its snapshot's totals are as told; return its report."""
        pipeline = load_pipeline(self.folder / "pipeline.toml", overrides=overrides, environ={})

        async def stop() -> None:
            while until is not None and not until(pipeline.snapshot().totals.as_records()):
                await anyio.sleep(0.001)
            pipeline.stop()

        async def run() -> dict[str, Any]:
            async with anyio.create_task_group() as tasks:
                if until is not None:
                    tasks.start_soon(stop)
                report = await pipeline.run()
            return report.as_dict()

        return anyio.run(run)

    def command(self, *arguments: str) -> tuple[int, str]:
        """Run a command on the config: its words, then options. Returns exit code and output."""
        at = 2 if arguments[0] in ("runs", "dead-letters", "state") else 1
        line = ["streambatch", *arguments[:at], str(self.folder / "pipeline.toml"), *arguments[at:]]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", line)
            with pytest.raises(SystemExit) as ended:
                main()
        assert isinstance(ended.value.code, int)
        shown = self._capsys.readouterr()
        return ended.value.code, shown.out + shown.err

    def verified(self, run: str = "latest", *options: str) -> dict[str, Any]:
        """Verify a run and return what came of it, with the exit code."""
        code, out = self.command("runs", "verify", run, "--json", *options)
        found: dict[str, Any] = json.loads(out)
        assert code == (found["verdict"] == "differs")
        return found

    def audited(self) -> dict[str, Any]:
        """Audit and return what came of it."""
        code, out = self.command("audit", "--json")
        found: dict[str, Any] = json.loads(out)
        assert code == (not found["is_right"])
        return found

    def runs(self) -> list[str]:
        """Return the ids of the runs, oldest first."""
        return [run["run"] for run in json.loads(self.command("runs", "list", "--json")[1])]

    def check_all(self) -> None:
        """Check that every run verifies and the audit agrees."""
        for run in self.runs():
            found = self.verified(run)
            assert found["verdict"] == "agrees", found
            assert found["counts"].get("batches_same", 0) == found["counts"].get("batches", 0), found
        assert self.audited()["is_right"], self.command("audit")[1]


def flip(path: Path, offset: int) -> None:
    """Change a digit at or after an offset into another."""
    data = bytearray(path.read_bytes())
    at = next(at for at in range(offset, len(data)) if chr(data[at]).isdigit() and chr(data[at - 1]) == ".")
    data[at] = ord("1") if data[at] != ord("1") else ord("2")
    path.write_bytes(data)
