"""What a scrape says, as numbers by name and labels."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from streambatch.observe import Metrics, MetricsObserver
from streambatch.observe.catalogue import PREFIX
from streambatch.observe.drift import Drift
from tests.observe.batches import PARTS
from tests.snapshots import FakePipeline

Labels = frozenset[tuple[str, str]]


class Scrape:
    """The samples of a registry at one moment."""

    def __init__(self, registry: CollectorRegistry, *, by_text: bool = False) -> None:
        """Take them as they are collected or, slower, from the text that Prometheus would read."""
        self.kinds: dict[str, str] = {}
        self.samples: dict[tuple[str, Labels], float] = {}
        text = generate_latest(registry).decode() if by_text else ""
        for family in text_string_to_metric_families(text) if by_text else registry.collect():
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self.samples, f"{sample.name} twice with {sample.labels}"
                self.samples[key] = sample.value
                self.kinds[sample.name] = family.type

    def value(self, name: str, **labels: str) -> float:
        """Return the one sample that has these labels, and maybe others."""
        (value,) = self.values(name, **labels)
        return value

    def values(self, name: str, **labels: str) -> list[float]:
        return [value for _, value in self.find(name, **labels)]

    def find(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        for (found, having), value in self.samples.items():
            if found == PREFIX + name and labels.items() <= dict(having).items():
                yield dict(having), value


def parts_of(scrape: Scrape) -> dict[str, float]:
    """Return the sum of each part, in the order of PARTS."""
    sums = {
        **{f"wait {labels['at']}": value for labels, value in scrape.find("wait_seconds_sum")},
        **{f"stage {labels['stage']}": value for labels, value in scrape.find("stage_duration_seconds_sum")},
    }
    waits = {"source": "source", "queue": "queue", "batch": "batch", "worker": "worker", "sink_wait": "sink"}
    assert sums.pop("wait retry") == 0
    assert len(sums) == len(PARTS)
    return {part: sums[f"wait {waits[part]}" if part in waits else f"stage {part}"] for part in PARTS}


class Scraped:
    """A registry with one fake pipeline and its observer."""

    def __init__(self, pipeline: FakePipeline | None = None, drift: Drift | None = None) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, revision="abc123", config_digest="c0ffee")
        self.pipeline = pipeline or FakePipeline()
        self.observer = MetricsObserver()
        self.metrics.attach(self.pipeline, self.observer, model_format="linear", model_digest="beef", drift=drift)

    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def scrape(self, *, by_text: bool = False) -> Scrape:
        return Scrape(self.registry, by_text=by_text)
