"""Every test of files also checks that they, and segments, make only the transitions that the tables list."""

from collections.abc import Iterator

import pytest

from streambatch.connectors.files.followed import (
    PRESENCE_TRANSITIONS,
    PROGRESS_TRANSITIONS,
    Followed,
    Presence,
    Progress,
)
from streambatch.connectors.files.tail import Tail
from tests.storage.transitions import checked_segments


@pytest.fixture(autouse=True, scope="session")
def transitions_of_the_tables() -> Iterator[None]:
    become, appear = Tail._become, Tail._appear

    def checked_become(self: Tail, file: Followed, progress: Progress) -> None:
        assert (file.progress, progress) in PROGRESS_TRANSITIONS, f"{file.progress} to {progress}: not in the table"
        become(self, file, progress)

    def checked_appear(self: Tail, file: Followed, presence: Presence) -> None:
        assert (file.presence, presence) in PRESENCE_TRANSITIONS, f"{file.presence} to {presence}: not in the table"
        appear(self, file, presence)

    with checked_segments(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tail, "_become", checked_become)
        patch.setattr(Tail, "_appear", checked_appear)
        yield
