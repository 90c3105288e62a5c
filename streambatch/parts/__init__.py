"""All that a source, step, model or sink of one's own is made of.

`Source` and `Sink` are options; `build` makes their running part, a `Reader` or a `Writer`. Options of steps and models
build them in the same way. The other names are what these parts are given, return or raise.

Names are imported when they are first used, so that a part takes no longer to import than what it uses.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streambatch.codecs.formats import framing_for_format
    from streambatch.core.backlog import Backlog
    from streambatch.core.checkpoints import CommitMark, OutputMark, PartitionNotes, SavedPartition
    from streambatch.core.chunks import Chunk, Fault, Partition
    from streambatch.core.clock import Clock
    from streambatch.core.codec import FramerStart
    from streambatch.core.errors import (
        ConfigError,
        HeldError,
        ModelError,
        OptionError,
        RetryableError,
        ShapeError,
        SinkError,
        SinkOutage,
        SinkRefused,
        SourceError,
        StepError,
        StreambatchError,
    )
    from streambatch.core.events import Observer
    from streambatch.core.feed import Feed
    from streambatch.core.intake import Intake
    from streambatch.core.options import options
    from streambatch.core.parts import (
        Claim,
        Model,
        ModelOptions,
        Reader,
        Sink,
        Site,
        Source,
        StatefulStep,
        Step,
        StepOptions,
        Writer,
    )
    from streambatch.core.types import BoolArray, FloatArray
    from streambatch.core.units import Duration, Size

_HOMES = {
    "Backlog": "core.backlog",
    "BoolArray": "core.types",
    "Chunk": "core.chunks",
    "Claim": "core.parts",
    "Clock": "core.clock",
    "CommitMark": "core.checkpoints",
    "ConfigError": "core.errors",
    "Duration": "core.units",
    "Fault": "core.chunks",
    "Feed": "core.feed",
    "FloatArray": "core.types",
    "FramerStart": "core.codec",
    "HeldError": "core.errors",
    "Intake": "core.intake",
    "Model": "core.parts",
    "ModelError": "core.errors",
    "ModelOptions": "core.parts",
    "Observer": "core.events",
    "OptionError": "core.errors",
    "OutputMark": "core.checkpoints",
    "Partition": "core.chunks",
    "PartitionNotes": "core.checkpoints",
    "Reader": "core.parts",
    "RetryableError": "core.errors",
    "SavedPartition": "core.checkpoints",
    "ShapeError": "core.errors",
    "Sink": "core.parts",
    "SinkError": "core.errors",
    "SinkOutage": "core.errors",
    "SinkRefused": "core.errors",
    "Site": "core.parts",
    "Size": "core.units",
    "Source": "core.parts",
    "SourceError": "core.errors",
    "StatefulStep": "core.parts",
    "Step": "core.parts",
    "StepError": "core.errors",
    "StepOptions": "core.parts",
    "StreambatchError": "core.errors",
    "Writer": "core.parts",
    "framing_for_format": "codecs.formats",
    "options": "core.options",
}

__all__ = [
    "Backlog",
    "BoolArray",
    "Chunk",
    "Claim",
    "Clock",
    "CommitMark",
    "ConfigError",
    "Duration",
    "Fault",
    "Feed",
    "FloatArray",
    "FramerStart",
    "HeldError",
    "Intake",
    "Model",
    "ModelError",
    "ModelOptions",
    "Observer",
    "OptionError",
    "OutputMark",
    "Partition",
    "PartitionNotes",
    "Reader",
    "RetryableError",
    "SavedPartition",
    "ShapeError",
    "Sink",
    "SinkError",
    "SinkOutage",
    "SinkRefused",
    "Site",
    "Size",
    "Source",
    "SourceError",
    "StatefulStep",
    "Step",
    "StepError",
    "StepOptions",
    "StreambatchError",
    "Writer",
    "framing_for_format",
    "options",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"streambatch.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
