"""Every test of segments also checks their transitions."""

from collections.abc import Iterator

import pytest

from tests.storage.transitions import checked_segments


@pytest.fixture(autouse=True)
def transitions_of_segments() -> Iterator[None]:
    with checked_segments():
        yield
