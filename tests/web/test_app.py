"""What the admin port answers, asked over real HTTP."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from streambatch.core.report import Counts, DriverState, Snapshot
from streambatch.observe import Metrics, MetricsObserver
from streambatch.web.app import PAGES
from tests.snapshots import QUIET, FakePipeline, snapshot_of
from tests.web.clients import CONFIG, Answer, admin_of, app_of, ask, serving

STUCK = snapshot_of(drivers={"batch": DriverState(69.0, None), "sink": DriverState(10.0, "backpressure")})
NOT_READY = snapshot_of(not_ready=["the pipeline is draining", "sink scores: a write has been waiting for 7 s"])

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


async def asked(path: str, now: Snapshot = QUIET, method: str = "GET", **headers: str) -> Answer:
    """Return the answer about a pipeline that is as `now` says."""
    pipeline, registry = FakePipeline(now), CollectorRegistry()
    Metrics(registry).attach(pipeline, MetricsObserver(), model_format="linear")
    async with serving(app_of(pipeline, registry)) as address:
        return await ask(address, path, method, {name.replace("_", "-"): value for name, value in headers.items()})


async def test_a_pipeline_that_gets_on_is_live_and_ready() -> None:
    for path in ("/livez", "/readyz"):
        answer = await asked(path)
        assert (answer.status, answer.text) == (200, "ok\n")


async def test_livez_names_the_drivers_that_are_stuck_and_not_those_that_wait_by_design() -> None:
    answer = await asked("/livez", STUCK)
    assert (answer.status, answer.text) == (503, "batch: stuck for more than 30 s\n")


async def test_livez_doesn_t_care_for_readiness_nor_readyz_for_liveness() -> None:
    assert (await asked("/livez", NOT_READY)).status == 200
    assert (await asked("/readyz", STUCK)).status == 200


async def test_readyz_says_why_not() -> None:
    answer = await asked("/readyz", NOT_READY)
    assert answer.status == 503
    assert answer.text.splitlines() == NOT_READY.not_ready


@pytest.mark.parametrize(("now", "status"), [(QUIET, 200), (STUCK, 503), (NOT_READY, 503)])
async def test_healthz_says_all_of_it(now: Snapshot, status: int) -> None:
    answer = await asked("/healthz", now)
    assert answer.status == status
    assert answer.json["live"] == (now is not STUCK)
    assert answer.json["ready"] == (now is not NOT_READY)
    assert answer.json["stuck"] == (["batch"] if now is STUCK else [])
    assert answer.json["not_ready"] == now.not_ready
    assert answer.json["drivers"].keys() == now.drivers.keys()


async def test_status_is_the_snapshot_without_monotonic_times() -> None:
    counts = Counts(received=9, scored=3, dead_lettered=2, dropped={"filtered": 1}, unacked=3, refused={"size": 4})
    now = snapshot_of(
        sources={"one": counts},
        dead_letters={("score", "model_error"): 1, ("decode", "invalid_json"): 1},
        queue_records=3,
        queue_size=30,
        queue_oldest_arrival=99.5,
    )
    status = (await asked("/status", now)).json
    assert status["records"] == {
        "received": 9, "recovered": 0, "scored": 3, "dead_lettered": 2, "dropped": 1, "unacked": 3, "refused": 4,
        "dropped_by_reason": {"filtered": 1}, "refused_by_reason": {"size": 4}, "imbalance": 0,
    }  # fmt: skip
    assert status["records"].items() <= status["sources"]["one"].items()
    assert status["dead_letters"] == [
        {"stage": "decode", "reason": "invalid_json", "records": 1},
        {"stage": "score", "reason": "model_error", "records": 1},
    ]
    assert status["queue"]["oldest_seconds"] == 0.5
    assert status["started_at"] == "2023-11-14T22:13:20.000+00:00"
    assert status["drivers"]["sink"] == {"seconds_since_turn": 0.0, "parked": "input"}
    assert (status["pipeline"], status["state"], status["ready"]) == ("rides", "running", True)


async def test_status_of_an_empty_queue_has_no_oldest_record() -> None:
    assert (await asked("/status")).json["queue"]["oldest_seconds"] is None


async def test_config_is_what_was_given() -> None:
    assert (await asked("/config")).json == CONFIG


async def test_config_may_hold_paths() -> None:
    async with serving(admin_of(config={"state_dir": Path("state")}).app) as address:
        assert (await ask(address, "/config")).json == {"state_dir": "state"}


async def test_config_may_hold_names_that_are_not_utf_8() -> None:
    config = {"state_dir": Path("caf\udce9"), "sink": {"caf\udce9": {"paths": ["a/caf\udce9"]}}}
    async with serving(admin_of(config=config).app) as address:
        shown = (await ask(address, "/config")).json
    assert shown == {"state_dir": r"caf\xe9", "sink": {r"caf\xe9": {"paths": [r"a/caf\xe9"]}}}


async def test_metrics_are_plain_text_unless_openmetrics_are_asked_for() -> None:
    plain = await asked("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "streambatch_records_imbalance" in {family.name for family in parse_plain(plain.text)}
    asks = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    opened = await asked("/metrics", accept=asks)
    assert opened.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert "streambatch_records_imbalance" in {family.name for family in parse_openmetrics(opened.text)}  # type: ignore[no-untyped-call]  # the library has no types


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=x", "text/plain;version=a.b", ";;;", "é"])
async def test_metrics_come_whatever_is_asked_for(accept: str) -> None:
    answer = await asked("/metrics", accept=accept)
    assert answer.status == 200
    assert "streambatch_ready" in {family.name for family in parse_plain(answer.text)}


async def test_metrics_are_compressed_for_who_takes_it() -> None:
    compressed = await asked("/metrics", accept_encoding="gzip")
    assert compressed.headers["content-encoding"] == "gzip"
    assert b"streambatch_ready" in gzip.decompress(compressed.body)
    assert int(compressed.headers["content-length"]) == len(compressed.body)
    assert "content-encoding" not in (await asked("/metrics", accept_encoding="identity")).headers


async def test_the_page_links_to_every_other() -> None:
    answer = await asked("/")
    assert answer.headers["content-type"].startswith("text/html")
    for path in set(PAGES) - {"/", "/events"}:
        assert f'href="{path}"' in answer.text


async def test_what_the_page_is_made_of_is_served_for_ever_and_may_load_nothing_else() -> None:
    async with serving(app_of()) as address:
        page = await ask(address, "/")
        assets = re.findall(r'"(/page\.[^"]+)"', page.text)
        assert [asset.rpartition(".")[2] for asset in assets] == ["css", "js"]
        for path in assets:
            answer = await ask(address, path)
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert answer.body
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert not re.search(r"(src|href)=.?(https?:)?//", page.text)
    assert "<script>" not in page.text
    assert "style=" not in page.text


@pytest.mark.parametrize("path", [path for path in PAGES if path != "/events"])
async def test_head_says_what_get_says_without_the_body(path: str) -> None:
    got, head = await asked(path), await asked(path, method="HEAD")
    assert (head.status, head.body) == (got.status, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert got.status == 200
    assert got.body


@pytest.mark.parametrize("path", ["/nope", "/metrics/", "//", "/%00", "/livez/../config", "/records"])
async def test_a_page_that_is_not_there(path: str) -> None:
    answer = await asked(path)
    assert answer.status == 404
    assert answer.json["error"].endswith(f"no such page; allowed: {', '.join(PAGES)}")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
async def test_nothing_can_be_changed(method: str) -> None:
    answer = await asked("/config", method=method)
    assert answer.status == 405
    assert answer.json == {"error": f"/config: found {method}; allowed: GET, HEAD"}
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_answers_are_dated_not_cached_and_don_t_name_the_server() -> None:
    for path in ("/", "/livez", "/status", "/metrics", "/nope"):
        headers = (await asked(path)).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
    assert "date" in (await asked("/livez")).headers


async def test_a_probe_takes_one_snapshot() -> None:
    pipeline = FakePipeline()
    async with serving(app_of(pipeline)) as address:
        await ask(address, "/livez")
    assert pipeline.snapshots == 1
