"""Options of `streambatch run` that say how it logs."""

from pathlib import Path

import pytest

from streambatch.cli.run import run_pipeline
from streambatch.errors import ConfigError


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
