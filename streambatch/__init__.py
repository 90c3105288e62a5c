"""streambatch: score never-ending streams of records with a model.

Names are imported when they are first used, so that `import streambatch` and the command line start quickly.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from streambatch.assemble import load_pipeline
    from streambatch.codecs.schema import RecordSchema
    from streambatch.durability import Delivery
    from streambatch.errors import ConfigError, RetryableError, StreambatchError
    from streambatch.ingest.feed import Feed
    from streambatch.ingest.file import FileSource
    from streambatch.ingest.http import HttpSource
    from streambatch.ingest.memory import MemorySource
    from streambatch.ingest.stdin import StdinSource
    from streambatch.ingest.tcp import TcpSource
    from streambatch.ingest.udp import UdpSource
    from streambatch.ingest.unix import UnixSource
    from streambatch.loader import SourceBatch, microbatches
    from streambatch.microbatch.batched import Batched, FullError, InterruptedCallError, batched
    from streambatch.microbatch.budget import Limits
    from streambatch.microbatch.inbox import QueueLimits
    from streambatch.microbatch.window import BatchPolicy
    from streambatch.pipeline import Pipeline
    from streambatch.scoring.executors import Workers
    from streambatch.scoring.linear import LinearModel
    from streambatch.scoring.python import PythonModel
    from streambatch.scoring.steps import Clip, Impute, MinMax, PythonStep, Standardize
    from streambatch.segments import Rotation
    from streambatch.sinks.file import FileSink
    from streambatch.sinks.http import HttpSink
    from streambatch.sinks.memory import MemorySink
    from streambatch.sinks.none import NoneSink
    from streambatch.sinks.stdout import StdoutSink
    from streambatch.sinks.tcp import TcpSink
    from streambatch.state.dead_letters import DeadLetterOptions
    from streambatch.state.report import RunReport, Snapshot

_HOMES = {
    "BatchPolicy": "microbatch.window",
    "Batched": "microbatch.batched",
    "Clip": "scoring.steps",
    "ConfigError": "errors",
    "DeadLetterOptions": "state.dead_letters",
    "Delivery": "durability",
    "Feed": "ingest.feed",
    "FileSink": "sinks.file",
    "FileSource": "ingest.file",
    "FullError": "microbatch.batched",
    "HttpSink": "sinks.http",
    "HttpSource": "ingest.http",
    "Impute": "scoring.steps",
    "InterruptedCallError": "microbatch.batched",
    "Limits": "microbatch.budget",
    "LinearModel": "scoring.linear",
    "MemorySink": "sinks.memory",
    "MemorySource": "ingest.memory",
    "MinMax": "scoring.steps",
    "NoneSink": "sinks.none",
    "Pipeline": "pipeline",
    "PythonModel": "scoring.python",
    "PythonStep": "scoring.steps",
    "QueueLimits": "microbatch.inbox",
    "RecordSchema": "codecs.schema",
    "RetryableError": "errors",
    "Rotation": "segments",
    "RunReport": "state.report",
    "Snapshot": "state.report",
    "SourceBatch": "loader",
    "Standardize": "scoring.steps",
    "StdinSource": "ingest.stdin",
    "StdoutSink": "sinks.stdout",
    "StreambatchError": "errors",
    "TcpSink": "sinks.tcp",
    "TcpSource": "ingest.tcp",
    "UdpSource": "ingest.udp",
    "UnixSource": "ingest.unix",
    "Workers": "scoring.executors",
    "batched": "microbatch.batched",
    "load_pipeline": "assemble",
    "microbatches": "loader",
}

__all__ = [
    "BatchPolicy",
    "Batched",
    "Clip",
    "ConfigError",
    "DeadLetterOptions",
    "Delivery",
    "Feed",
    "FileSink",
    "FileSource",
    "FullError",
    "HttpSink",
    "HttpSource",
    "Impute",
    "InterruptedCallError",
    "Limits",
    "LinearModel",
    "MemorySink",
    "MemorySource",
    "MinMax",
    "NoneSink",
    "Pipeline",
    "PythonModel",
    "PythonStep",
    "QueueLimits",
    "RecordSchema",
    "RetryableError",
    "Rotation",
    "RunReport",
    "Snapshot",
    "SourceBatch",
    "Standardize",
    "StdinSource",
    "StdoutSink",
    "StreambatchError",
    "TcpSink",
    "TcpSource",
    "UdpSource",
    "UnixSource",
    "Workers",
    "batched",
    "load_pipeline",
    "microbatches",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
