"""A real Prometheus on loopback that scrapes one process, with the rules that are checked in."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import Any

from tests.e2e.running import PATIENCE_SECONDS
from tests.grafana.boards import RULES

SCRAPE = "500ms"


class Prometheus:
    """Answers queries. Use `scraping`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self._process, self._url, self._log = process, url, log

    def values(self, expr: str) -> list[float]:
        """Return the value of each series that a query has now."""
        found = self.ask("query", query=expr)["result"]
        return [float(series["value"][1]) for series in found]

    def holds(self, expr: str) -> bool:
        """Tell whether a condition holds for any series."""
        return bool(self.values(expr))

    def ask(self, what: str, **parameters: str) -> dict[str, Any]:
        """Return the data of an answer of the API."""
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            data: dict[str, Any] = json.load(answer)["data"]
            return data

    def until(self, expr: str) -> None:
        """Wait until a condition holds."""
        self._until(lambda: self.holds(expr), expr)

    def until_ready(self) -> None:
        """Wait until it answers."""
        self._until(lambda: _answers(f"{self._url}/-/ready"), "ready")

    def _until(self, is_true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_true():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s: {what}"
            time.sleep(0.1)  # a Prometheus can only be asked again


@contextmanager
def scraping(folder: Path, target: str) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes `target`, host and port; whatever happens, it is gone afterwards."""
    config = {
        "global": {
            "scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": "1s",
            "external_labels": {"runbooks": "https://example.com"},
        },
        "rule_files": [str(path) for path in RULES],
        "scrape_configs": [{"job_name": "streambatch", "static_configs": [{"targets": [target]}]}],
    }  # fmt: skip
    (folder / "prometheus.yml").write_text(json.dumps(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = folder / "prometheus.log"
    command = [
        "prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb", f"--web.listen-address={address}",
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    prometheus = Prometheus(process, f"http://{address}", log)
    try:
        prometheus.until_ready()
        yield prometheus
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def is_data(values: list[float]) -> bool:
    """Tell whether there is anything to draw, and nothing that is no number."""
    return bool(values) and not any(map(isnan, values))
