from pathlib import Path

import pytest

from tests.ops.traced import Traced


@pytest.fixture
def traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Traced:
    return Traced(tmp_path, capsys)
