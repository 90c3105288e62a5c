"""What differs between two configs, told by key, and what of it a running pipeline can change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from streambatch.config.assemble import load_config
from streambatch.config.changes import Change, changes_between, check_live
from streambatch.config.config import Config
from streambatch.core.errors import ConfigError
from streambatch.pipeline.settings import LATER

CONFIG = """
name = "rides"
[source.rides_in]
type = "tcp"
listen = "127.0.0.1:9000"
[record]
features = "x"
shape = [2]
[[preprocess]]
type = "standardize"
mean = [0.0, 1.0]
scale = 1.0
[model]
type = "linear"
path = "model.npz"
[sink.scores]
type = "none"
[http]
listen = "127.0.0.1:9464"
token = "${ADMIN_TOKEN:-first}"
"""
Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(*overrides: str, **environ: str) -> Config:
        (tmp_path / "pipeline.toml").write_text(CONFIG)
        return load_config(tmp_path / "pipeline.toml", overrides=overrides, environ=environ)

    return load


def test_the_same_config_has_no_changes(load: Load) -> None:
    assert changes_between(load(), load()) == []


@pytest.mark.parametrize(
    ("override", "key", "before", "after", "is_live"),
    [
        ("batch.max_records=64", "batch.max_records", "512", "64", True),
        ("model.path='other.npz'", "model.path", "'model.npz'", "'other.npz'", True),
        ("model.sha256='" + "a" * 64 + "'", "model.sha256", "nothing", f"'{'a' * 64}'", True),
        ("preprocess[0].mean=[0.0, 2.0]", "preprocess[0].mean", "[0.0, 1.0]", "[0.0, 2.0]", True),
        ("workers.count=2", "workers.count", "1", "2", True),
        ("workers.attempts=5", "workers.attempts", "3", "5", True),
        ("dead_letter.stop_at=0.2", "dead_letter.stop_at", "nothing", "0.2", True),
        ("queue.max_bytes='16MiB'", "queue.max_bytes", "67108864", "16777216", True),
        ("delivery.drain_timeout=1", "delivery.drain_timeout", "20.0", "1.0", True),
        ("workers.executor='inline'", "workers.executor", "'thread'", "'inline'", False),
        ("limits.memory='64MiB'", "limits.memory", "268435456", "67108864", False),
        ("source.rides_in.listen='127.0.0.1:9001'", "source.rides_in.listen", "'127.0.0.1:9000'", None, False),
        ("record.missing='nan'", "record.missing", "'reject'", "'nan'", False),
        ("http.lifecycle=true", "http.lifecycle", "False", "True", False),
        ("runs.keep='1d'", "runs.keep", "2592000.0", "86400.0", False),
    ],
)
def test_a_change_is_told_by_its_key(
    load: Load, override: str, key: str, before: str, after: str | None, is_live: bool
) -> None:
    changes = {change.key: change for change in changes_between(load(), load(override))}
    found = changes[key]
    assert found.before == before
    assert after is None or found.after == after
    assert found.is_live == is_live
    if found.is_live:
        check_live([found], "pipeline.toml")
    else:
        with pytest.raises(ConfigError) as caught:
            check_live(list(changes.values()), "pipeline.toml")
        assert f"{key}: found {found.after}; allowed: {before}, {LATER}" in str(caught.value)


def test_a_name_that_is_not_utf_8_is_shown_as_everywhere(load: Load) -> None:
    source = """source.rides_in={{type="file", path="{}"}}"""
    changes = changes_between(load(source.format("a")), load(source.format("caf\udce9")))
    (after,) = (change.after for change in changes if change.key == "source.rides_in.path")
    assert after.endswith(r"/caf\xe9'")


def test_a_secret_that_changed_is_found_and_not_shown(load: Load) -> None:
    (change,) = changes_between(load(ADMIN_TOKEN="first"), load(ADMIN_TOKEN="second"))
    assert change == Change("http", "a secret value", "another one")
    assert not change.is_live
