"""Checks that segments make only the transitions that the table lists."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from streambatch.storage.segment_states import SEGMENT_TRANSITIONS, Segment, SegmentState


@contextmanager
def checked_segments() -> Iterator[None]:
    """Compare every transition with the table while the test runs."""
    become = Segment.become

    def checked(self: Segment, state: SegmentState) -> None:
        assert (self.state, state) in SEGMENT_TRANSITIONS, f"{self.state} to {state}: not in the table"
        become(self, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Segment, "become", checked)
        yield
