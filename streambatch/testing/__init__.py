"""Tools for testing your own parts: conformance suites, fakes of what a part is given, and virtual time.

A suite is a class of tests. Inherit from it in a class whose name starts with `Test`, and define how the part is made;
pytest then runs every test that such a part must pass. It needs no plugin.
"""

from streambatch.testing.conformance import Conformance as Conformance
from streambatch.testing.fakes import CollectingIntake as CollectingIntake
from streambatch.testing.fakes import CountingMemory as CountingMemory
from streambatch.testing.fakes import RecordingObserver as RecordingObserver
from streambatch.testing.models import ModelConformance as ModelConformance
from streambatch.testing.rows import Row as Row
from streambatch.testing.rows import rows_in as rows_in
from streambatch.testing.sinks import SinkConformance as SinkConformance
from streambatch.testing.sources import SourceConformance as SourceConformance
from streambatch.testing.steps import StepConformance as StepConformance
from streambatch.testing.virtual_time import LoopClock as LoopClock
from streambatch.testing.virtual_time import run_in_virtual_time as run_in_virtual_time

__all__ = [
    "CollectingIntake",
    "Conformance",
    "CountingMemory",
    "LoopClock",
    "ModelConformance",
    "RecordingObserver",
    "Row",
    "SinkConformance",
    "SourceConformance",
    "StepConformance",
    "rows_in",
    "run_in_virtual_time",
]
