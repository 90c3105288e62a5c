"""`streambatch demo`: the real `streambatch run` in a process of its own, on input that is made while it runs.

However it ends, the process and the folder are gone afterwards; the folder stays with --keep.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EADDRINUSE
from importlib.resources import files
from math import cos, pi
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from streambatch.cli.progress import Figures, ProgressBar, Rate
from streambatch.cli.samples import rides, write_model
from streambatch.config.draft import PREFIX
from streambatch.core.errors import StreambatchError
from streambatch.core.units import format_duration
from streambatch.observe.logs import stderr_is_terminal

RATE, WAVE, WAVE_SECONDS = 12_000, 0.8, 5.0
"""The input: records per second on average, the share by which that swings, and the period."""
BURST, BURST_AT = 20_000, 0.6
"""Records that come in one burst, and the share of the time after which they do."""
BROKEN_EVERY = 5_000
TICK_SECONDS = 0.05
TICKS_PER_LINE = 40
"""Ticks between two lines of progress where stderr is no terminal."""
PATIENCE_SECONDS = 20.0
"""Time that the pipeline may take to start, to catch up, or to stop."""
PORT = 9464
"""Port of the pipeline; if it is taken, the system chooses another."""


class DemoError(StreambatchError):
    """The demo's pipeline failed. Holds the last lines of its log."""


class PortTakenError(DemoError):
    """Another process listens on the pipeline's port."""


def run_demo(seconds: float, *, keep: bool) -> int:
    """Feed a pipeline for `seconds`, show its progress and print a summary. Returns the exit code."""
    with _collected_signals() as ended:
        folder = Path(tempfile.mkdtemp(prefix="streambatch-demo-"))
        try:
            _run(folder, seconds, ended)
        except DemoError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            _leave(folder, keep=keep)
    return 0


def _run(folder: Path, seconds: float, ended: list[int]) -> None:
    write_model(folder / "model.npz")
    (folder / "feed.jsonl").touch()
    (folder / "pipeline.toml").write_bytes(files("streambatch.cli").joinpath("demo.toml").read_bytes())
    print(f"streambatch run pipeline.toml in {folder}, on a feed of made-up taxi rides for {seconds} s", flush=True)
    try:
        demo = _run_on(PORT, folder, seconds, ended)
    except PortTakenError:
        # Only tried: a port that was free at a look may be taken a moment later.
        demo = _run_on(0, folder, seconds, ended)
    _summarise(folder, demo)


def _run_on(port: int, folder: Path, seconds: float, ended: list[int]) -> Demo:
    with _pipeline(folder, port) as process:
        demo = Demo(process, folder)
        url = demo.start()
        print(f"watch it live at {url}/, its metrics are at {url}/metrics; Ctrl-C ends it early", flush=True)
        # Unbuffered: records are in the file when they are due.
        with _progress() as show, (folder / "feed.jsonl").open("ab", buffering=0) as feed:
            demo.feed(feed, seconds, show, ended)
            demo.catch_up(show)
        demo.stop()
    return demo


def _leave(folder: Path, *, keep: bool) -> None:
    if keep:
        print(f"kept        {folder}: pipeline.toml, model.npz, feed.jsonl and the output")
        return
    shutil.rmtree(folder, ignore_errors=True)
    print(f"removed     {folder}; streambatch demo --keep keeps it")


class Demo:
    """A running pipeline, and the input that it follows."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._process, self._log, self._url = process, folder / "run.log", ""
        self._rng = np.random.default_rng()
        self._busiest = Rate(1.0)
        self.fed = 0
        self.busiest = 0.0

    def start(self) -> str:
        """Wait until the pipeline is ready. Returns its address. Raises PortTakenError."""
        for _ in self._waiting("start"):
            self._url = self._listens_at()
            if self._url and self._answers("/readyz"):
                break
        return self._url

    def feed(self, feed: BinaryIO, seconds: float, show: Show, ended: list[int]) -> None:
        """Append records to the input as a producer would, for some seconds or until a signal."""
        started, tick = time.monotonic(), 0
        while not ended and (elapsed := time.monotonic() - started) < seconds:
            # What is due and not what a tick's rate gives: a tick that comes late is made up for.
            count = due(elapsed, seconds) - self.fed
            feed.write(rides(self._rng, self.fed + 1, count, broken_every=BROKEN_EVERY))
            self.fed += count
            show(self.figures(), tick)
            tick += 1
            time.sleep(TICK_SECONDS)  # the pace of the feed

    def catch_up(self, show: Show) -> None:
        """Wait until everything fed is scored or dead."""
        for tick in self._waiting("catch up"):
            figures = self.figures()
            show(figures, tick + 1)
            if figures.settled >= self.fed:
                return

    def stop(self) -> None:
        """Stop the pipeline gracefully."""
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._give_up("stop")
        # After SIGTERM a pipeline exits with 0, or something went wrong.
        if code:
            self._give_up("end well")

    def figures(self) -> Figures:
        """Return the pipeline's current figures."""
        try:
            with urllib.request.urlopen(f"{self._url}/status", timeout=5) as answer:
                status: dict[str, Any] = json.load(answer)
        except OSError:
            self._give_up("answer")
        records, queue = status["records"], status["queue"]
        figures = Figures(
            taken_at=time.monotonic(),
            received=records["received"],
            scored=records["scored"],
            dead=records["dead_lettered"],
            fill=queue["records"] / queue["capacity_records"],
            p99=status["latency_seconds"]["p99"],
        )
        self.busiest = max(self.busiest, self._busiest.at(figures))
        return figures

    def _waiting(self, what: str) -> Iterator[int]:
        deadline, tick = time.monotonic() + PATIENCE_SECONDS, 0
        while time.monotonic() < deadline and self._process.poll() is None:
            yield tick
            tick += 1
            time.sleep(TICK_SECONDS)  # another process can only be polled
        self._give_up(what)

    def _give_up(self, what: str) -> NoReturn:
        # The pipeline is another process: why it failed is only in its log.
        last = self._log.read_text(errors="replace").splitlines()[-3:]
        kind = PortTakenError if last and os.strerror(EADDRINUSE).lower() in last[-1].lower() else DemoError
        raise kind("\n".join([f"the pipeline did not {what}; its log ends with", *last]))

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self._url + path, timeout=5):
                return True
        except OSError:
            return False

    def _listens_at(self) -> str:
        """Return the address in the log, or an empty text before it is there."""
        found = re.search(r'"admin_listening","url":"([^"]+)"', self._log.read_text(errors="replace"))
        return found[1] if found else ""


class Show:
    """Shows progress on stderr: a bar on a terminal, else a line now and then."""

    def __init__(self, bar: ProgressBar | None) -> None:
        self._bar, self._rate = bar, Rate()

    def __call__(self, figures: Figures, tick: int) -> None:
        if self._bar is not None:
            self._bar.show(figures)
            return
        rate = self._rate.at(figures)
        if tick and tick % TICKS_PER_LINE == 0:
            print(figures.describe(rate), file=sys.stderr, flush=True)


def due(elapsed: float, seconds: float) -> int:
    """Return the number of records fed after `elapsed` of `seconds`: a rate that swings, and a burst."""
    swing = WAVE * WAVE_SECONDS / (2 * pi) * (1 - cos(2 * pi * elapsed / WAVE_SECONDS))
    return round(RATE * (elapsed + swing)) + BURST * (elapsed >= BURST_AT * seconds)


@contextmanager
def _pipeline(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the pipeline with its log in run.log, and kill the process at the end."""
    command = [sys.executable, "-m", "streambatch", "run", "pipeline.toml", "--report", "report.json"]
    command += ["--set", f"http.listen=127.0.0.1:{port}"]
    # The demo has its own config: overrides in the environment are for other pipelines.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with (folder / "run.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # or Ctrl-C on the terminal would stop it before the demo does
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def _progress() -> Iterator[Show]:
    if not stderr_is_terminal():
        yield Show(None)
        return
    bar = ProgressBar("demo")
    with bar:
        yield Show(bar)


@contextmanager
def _collected_signals() -> Iterator[list[int]]:
    """Collect signals in a list instead of being ended by them: the input ends early, and the summary still comes."""
    ended: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: ended.append(number)) for number in numbers}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _summarise(folder: Path, demo: Demo) -> None:
    report = json.loads((folder / "report.json").read_bytes())
    records, latency = report["records"], report["latency_seconds"]
    batches = ", ".join(f"{count:,} by {trigger}" for trigger, count in report["batches"].items() if count)
    p50, p99 = (format_duration(latency[name]) for name in ("p50", "p99"))
    print(
        f"received    {records['received']:,} records of {demo.fed:,} fed: {records['scored']:,} scored, "
        f"{records['dead_lettered']:,} dead letters, {records['unacked']:,} in flight",
        f"rate        {demo.busiest:,.0f} records in the busiest second; the feed sets the pace",
        f"latency     p50 {p50}, p99 {p99}, from read to written",
        f"batches     {batches}",
        f"a score     {_first_line(folder / 'scores.jsonl')}",
        f"dead letter {_first_line(folder / 'dead.jsonl')}",
        sep="\n",
    )


def _first_line(path: Path) -> str:
    if not path.exists():
        return "none yet"
    with path.open() as file:
        return file.readline().rstrip("\n") or "none yet"
