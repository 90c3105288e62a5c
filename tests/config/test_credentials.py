"""`${VAR}` in a config is found among the secrets that come as files, too, and is never shown."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from streambatch.config.assemble import load_config
from streambatch.config.config import Config
from streambatch.core.errors import ConfigError

CONFIG = """
name = "rides"
source.rides_in = { type = "file", path = "in.jsonl" }
record = { id = "id", features = "features", shape = [2] }
model = { type = "linear", path = "model.npz" }
sink.scores = { type = "http", url = "http://127.0.0.1:9/", headers = { "X-For" = "${SCORES_FOR}" } }
"""


def load(folder: Path, environ: Mapping[str, str] | None = None) -> Config:
    (folder / "pipeline.toml").write_text(CONFIG)
    return load_config(folder / "pipeline.toml", environ={"CREDENTIALS_DIRECTORY": str(folder), **(environ or {})})


def header_of(config: Config) -> str:
    headers: Mapping[str, str] = config.sink.options.headers
    return headers["X-For"]


@pytest.mark.parametrize("content", [b"me", b"me\n", b"me\r\n"])
def test_a_credential_takes_the_place_of_a_variable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "SCORES_FOR").write_bytes(content)
    config = load(tmp_path)
    assert header_of(config) == "me"
    assert "me" not in config.effective["sink"]["scores"]["headers"].values()


def test_the_environment_goes_first(tmp_path: Path) -> None:
    (tmp_path / "SCORES_FOR").write_text("file")
    assert header_of(load(tmp_path, {"SCORES_FOR": "environment"})) == "environment"


def test_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\$\{SCORES_FOR\}, which is not set"):
        load(tmp_path)


def test_one_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "SCORES_FOR").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="no text"):
        load(tmp_path)
    (tmp_path / "SCORES_FOR").unlink()
    (tmp_path / "SCORES_FOR").mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)
    (tmp_path / "SCORES_FOR").rmdir()
    (tmp_path / "SCORES_FOR").write_bytes(b"x" * (1 << 20 | 1))
    with pytest.raises(ConfigError, match="more than 1 MiB"):
        load(tmp_path)
