"""A daemon at full speed, killed and started again, scraped all along: every record is accounted for at every moment,
and the parts of the latency add up to the whole.

$SCRAPE_SECONDS: how long, about; 8 by default.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.running import Daemon, running, scores_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SECONDS = float(os.environ.get("SCRAPE_SECONDS", "8"))
BLOCK = 2000
"""Records of a write; the last of each is broken."""
AHEAD = 200_000
"""How far the writer may be ahead of the scores: enough to work at full speed, and soon done once it is over."""
PARTS = ("streambatch_wait_seconds_sum", "streambatch_stage_duration_seconds_sum")
CONFIG = """
    name = "rides"
    [source.rides_in]
    type = "file"
    path = "in.jsonl"
    follow = true
    [record]
    id = "id"
    features = "x"
    shape = [2]
    [model]
    type = "linear"
    path = "model.npz"
    [sink.scores]
    type = "file"
    path = "scores.jsonl"
    [dead_letter]
    stop_at = 1
    [delivery]
    checkpoint_interval = "200ms"
    [http]
    listen = "127.0.0.1:0"
"""


class Writer:
    """Appends numbered records, one in a hundred broken, as fast as they are scored."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.count = folder, 0
        self._is_over = threading.Event()

    @contextmanager
    def writing(self) -> Iterator[None]:
        thread = threading.Thread(target=self._write)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()

    def _write(self) -> None:
        with (self._folder / "in.jsonl").open("ab", buffering=0) as file:
            while not self._is_over.wait(0.005):
                if self.count - _last_id(self._folder) > AHEAD:
                    continue
                numbers = range(self.count, self.count + BLOCK)
                lines = [b'{"id":%d,"x":%s}\n' % (i, b'"bad"' if i % 100 == 99 else b"[1.0,2.0]") for i in numbers]
                file.write(b"".join(lines))
                self.count += BLOCK


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "model.npz", weights=np.ones(2), bias=np.zeros(()))
    (tmp_path / "in.jsonl").touch()
    return tmp_path


def test_nothing_is_unaccounted_for_in_any_scrape(folder: Path) -> None:
    writer, scrapes, scored = Writer(folder), 0, 0.0
    ends = time.monotonic() + SECONDS
    with writer.writing():
        while time.monotonic() < ends:
            with running(folder, CONFIG) as daemon:
                ready_to_go = min(time.monotonic() + SECONDS / 3, ends)
                while time.monotonic() < ready_to_go or scored == 0:
                    scored = _check(daemon)
                    scrapes += 1
                daemon.process.kill()
                daemon.process.wait()
            scored = 0.0
    with running(folder, CONFIG) as daemon:
        daemon.until(lambda: _last_id(folder) == writer.count - 2, "all was scored")
        _check(daemon)
        assert daemon.stop() == 0
    assert _ids(folder) == [i for i in range(writer.count) if i % 100 != 99]
    assert scrapes > SECONDS, "it was not scraped all along"


def _check(daemon: Daemon) -> float:
    """Hold one scrape to its promises. Returns the records scored."""
    status, text = daemon.get("/metrics")
    assert status == 200
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    assert found["streambatch_records_imbalance"] == 0
    whole = found["streambatch_end_to_end_latency_seconds_sum"]
    assert sum(found[part] for part in PARTS) == pytest.approx(whole, rel=1e-6, abs=1e-6)
    return found["streambatch_records_scored_total"]


def _ids(folder: Path) -> list[int]:
    return [score["id"] for score in scores_in(folder / "scores.jsonl")]


def _last_id(folder: Path) -> int:
    """Return the id of the last score in the file, whose ids rise; -1 if there is none."""
    path = folder / "scores.jsonl"
    if not path.exists():
        return -1
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        *scores, _ = file.read().split(b"\n")
    return int(json.loads(scores[-1])["id"]) if scores else -1
