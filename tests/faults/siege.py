"""A daemon under siege: killed at random moments, again and again, while a log is written and requests are sent.

Each start has other workers and batch sizes. After each cycle `audit` must agree and closed segments must be what they
were; at the end all that was written to the log, or answered 200, must have come out once and in order.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from streambatch.codecs.formats import OutputFormat
from tests.e2e.ports import held_port
from tests.faults import records
from tests.faults.clients import Clients
from tests.faults.nursery import Child, Nursery
from tests.faults.oracle import Figures, Outputs
from tests.faults.progress import done
from tests.faults.writer import Writer

DRAIN_SECONDS = 60.0
END_SECONDS = 30.0
UNFINISHED = 3
"""The exit code of a stop that took longer than it may; the rest is safe, and comes at the next start."""
SHAPES: dict[str, tuple[OutputFormat, str]] = {
    "jsonl": ("jsonl", ""),
    "jsonl-rotated": ("jsonl", 'rotate = { max_bytes = "32KiB" }'),
    "csv-rotated": ("csv", 'rotate = { max_bytes = "16KiB", max_age = "1s" }'),
    "jsonl-gzip-rotated": ("jsonl", 'compression = "gzip"\nrotate = { max_bytes = "16KiB" }'),
    "arrow": ("arrow", ""),
    "arrow-rotated": ("arrow", 'rotate = { max_bytes = "32KiB" }'),
    "parquet": ("parquet", 'rotate = { max_bytes = "64KiB", max_age = "500ms" }'),
}
"""Outputs to choose from: format, and other options of the sink."""


@dataclass(kw_only=True)
class Result:
    """What came of a siege. problems: all that isn't in the figures, such as audits that failed."""

    cycles: int = 0
    figures: Figures = field(default_factory=Figures)
    audits: int = 0
    audits_failed: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        return self.figures.is_exact and not self.problems and not self.audits_failed


class Siege:
    """One state folder from its first start to its end. shape: one of SHAPES."""

    def __init__(self, folder: Path, nursery: Nursery, *, shape: str, seed: int) -> None:
        self.folder, self._nursery = folder, nursery
        self._chance, self._seed = random.Random(seed), seed
        self._format, self._sink = SHAPES[shape]
        self._outputs = Outputs(folder, scores=f"out/scores.{self._format}", format=self._format)
        self._closed: dict[Path, tuple[int, int, int]] = {}
        self.result = Result()

    def run(self, cycles: int) -> Result:
        """Kill it so often, then let it finish, and judge."""
        with ExitStack() as besiegers:
            port = besiegers.enter_context(held_port())
            self._lay_out(port)
            writer = besiegers.enter_context(Writer(self.folder / "in", seed=self._seed))
            clients = besiegers.enter_context(Clients(port, seed=self._seed))
            for _ in range(cycles):
                self._cycle()
                self.result.cycles += 1
                if len(self.result.problems) > 5:
                    break
            writer.stop()
            last = self._start()
            clients.stop()
            sent = {**writer.counts, **clients.counts}
            self._drain(last, sum(sent.values()))
        self._look_at_closed()
        self._audit()
        self.result.figures = self._outputs.judge(sent)
        self.result.problems += [f"refused: {answer[:200]!r}" for answer in clients.refusals]
        self.result.problems += [f"the last request of {stream} was never answered" for stream in clients.unanswered]
        return self.result

    def _lay_out(self, port: int) -> None:
        (self.folder / "in").mkdir(parents=True)
        np.savez(self.folder / "model.npz", weights=np.ones(2, np.float32), bias=0.0)
        (self.folder / "pipeline.toml").write_text(
            f"""
            name = "siege"
            state_dir = "state"
            [source.log]
            type = "file"
            path = "in/log*.jsonl"
            follow = true
            rotate_wait = "500ms"
            [source.web]
            type = "http"
            listen = "127.0.0.1:{port}"
            max_body_bytes = "256KiB"
            spool = {{ max_bytes = "8MiB" }}
            {records.CONFIG}
            [sink.scores]
            type = "file"
            path = "{self._outputs.scores}"
            format = "{self._format}"
            {self._sink}
            [dead_letter]
            path = "{self._outputs.dead}"
            stop_at = 1.0
            rotate = {{ max_bytes = "16KiB" }}
            [http]
            listen = "off"
            """
        )

    def _cycle(self) -> None:
        child = self._start()
        self._disturb(child)
        is_early = child.code == -signal.SIGTERM and "state_changed" not in child.log.read_text()  # nobody heeds it yet
        if child.code not in (0, UNFINISHED, -signal.SIGKILL) and not is_early:
            self.result.problems.append(f"ended with {child.code}: {_tail(child.log)}")
        self._look_at_closed()
        self._audit()

    def _start(self) -> Child:
        chosen = {
            "workers.executor": self._chance.choice(["inline", "thread"]),
            "workers.count": self._chance.randint(1, 3),
            "batch.max_records": self._chance.choice([1, 7, 64, 512, 4096]),
            "batch.max_wait": f'"{self._chance.choice([1, 5, 50])}ms"',
            "delivery.checkpoint_interval": f'"{self._chance.choice([5, 20, 100, 400])}ms"',
        }
        if chosen["workers.executor"] == "inline":
            chosen["workers.count"] = 1
        return self._nursery.start(self.folder, "run", "pipeline.toml", *_overrides(chosen))

    def _disturb(self, child: Child) -> None:
        """Let it run for a moment, and end it in one of several ways."""
        chance = self._chance
        if chance.random() < 0.75:
            child.until_running()
            child.wait(chance.uniform(0, 0.8))
        else:
            child.wait(chance.uniform(0, 0.8))
        manner = chance.random()
        if manner < 0.25:
            child.send(signal.SIGTERM)
            child.wait(chance.uniform(0, 0.3))
        elif manner < 0.35:
            child.send(signal.SIGTERM)
            child.wait(END_SECONDS)
        elif manner < 0.45:
            child.send(signal.SIGSTOP)
            time.sleep(chance.uniform(0, 0.2))  # while it is stopped
            child.send(signal.SIGCONT)
            child.wait(chance.uniform(0, 0.1))
        if child.code is None:
            child.kill()

    def _drain(self, child: Child, expected: int) -> None:
        """Wait until as much came out as went in, and stop it."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while child.wait(0.3) is None and done(self.folder) < expected and time.monotonic() < deadline:
            pass
        child.send(signal.SIGTERM)
        if child.wait(END_SECONDS) != 0:
            self.result.problems.append(f"the last stop ended with {child.code}: {_tail(child.log)}")
            child.kill()

    def _look_at_closed(self) -> None:
        closed = self._outputs.closed()
        for path, known in self._closed.items():
            if closed.get(path) != known:
                self.result.problems.append(f"{path.name} was closed as {known} and is now {closed.get(path)}")
        self._closed = closed

    def _audit(self) -> None:
        """Have `streambatch audit` prove the accounting."""
        if not (self.folder / "state" / "state.sqlite3").exists():
            return  # killed before there was anything to account for
        child = self._nursery.start(self.folder, "audit", "pipeline.toml")
        self.result.audits += 1
        if child.wait(END_SECONDS) != 0:
            self.result.audits_failed += 1
            self.result.problems.append(f"audit ended with {child.code}: {_tail(child.log)}")
            if child.code is None:
                child.kill()


def _overrides(values: dict[str, object]) -> Sequence[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:] if log.exists() else "it said nothing"
