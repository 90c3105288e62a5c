"""`streambatch run`: how it logs, and that whatever a file is called can be said."""

import os
from pathlib import Path

import numpy as np
import pytest

from streambatch.cli.run import run_pipeline
from streambatch.core.errors import ConfigError
from tests.e2e.running import running

CONFIG = """
name = "rides"
source.in = { type = "file", path = "*.jsonl", follow = true }
record = { features = "x", shape = [1] }
model = { type = "linear", path = "model.npz" }
sink.scores = { type = "none" }
http = { listen = "127.0.0.1:0" }
"""


@pytest.mark.parametrize(
    ("level", "format", "message"),
    [
        ("loud", "auto", "--log-level: found 'loud'; allowed: debug, info, warning, error"),
        ("INFO", "xml", "--log-format: found 'xml'; allowed: auto, json, text"),
    ],
)
def test_what_is_no_level_or_format(level: str, format: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_pipeline(Path("pipeline.toml"), [], None, level=level, format=format)
    assert str(caught.value) == message


@pytest.mark.slow
def test_a_file_of_any_name_is_read_and_told_of(tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", weights=np.ones(1), bias=np.float64(0))
    (tmp_path / os.fsdecode(b"a\xff.jsonl")).write_text('{"x": [1]}\n{"x": [1, 2]}\n')
    with running(tmp_path, CONFIG) as daemon:
        assert daemon.event("file_opened")["path"] == rf"{tmp_path}/a\xff.jsonl"
        daemon.event("dead_letters", records=1)
        assert rb"a\\xff.jsonl" in daemon.get("/status")[1]
        daemon.until(lambda: rb"a\xff.jsonl" in daemon.get("/")[1], "the page shows it")
        assert daemon.stop() == 0
