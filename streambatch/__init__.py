"""streambatch: score never-ending streams of records with a model.

Names are imported when they are first used, so that `import streambatch` and the command line start quickly.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from streambatch.version import __version__ as __version__

if TYPE_CHECKING:
    from streambatch.config.assemble import load_pipeline
    from streambatch.connectors.files.sink import FileSink
    from streambatch.connectors.files.source import FileSource
    from streambatch.connectors.http.sink import HttpSink
    from streambatch.connectors.http.source import HttpSource
    from streambatch.connectors.memory.none import NoneSink
    from streambatch.connectors.memory.sink import MemorySink
    from streambatch.connectors.memory.source import MemorySource
    from streambatch.connectors.sockets.tcp import TcpSource
    from streambatch.connectors.sockets.tcp_sink import TcpSink
    from streambatch.connectors.sockets.udp import UdpSource
    from streambatch.connectors.sockets.unix import UnixSource
    from streambatch.connectors.stdio.sink import StdoutSink
    from streambatch.connectors.stdio.source import StdinSource
    from streambatch.core.budget import Limits
    from streambatch.core.errors import ConfigError, RetryableError, StreambatchError
    from streambatch.core.feed import Feed
    from streambatch.core.report import RunReport, Snapshot
    from streambatch.core.schema import RecordSchema
    from streambatch.delivery.dead_letters import DeadLetterOptions
    from streambatch.durability.options import Delivery
    from streambatch.embed.batched import Batched, FullError, InterruptedCallError, batched
    from streambatch.embed.microbatches import SourceBatch, microbatches
    from streambatch.microbatch.inbox import QueueLimits
    from streambatch.microbatch.window import BatchPolicy
    from streambatch.models.linear import LinearModel
    from streambatch.models.python import PythonModel
    from streambatch.pipeline.pipeline import Pipeline
    from streambatch.scoring.executors.choice import Workers
    from streambatch.steps.elementwise import (
        Clip,
        Impute,
        MinMax,
        Standardize,
    )
    from streambatch.steps.python import PythonStep
    from streambatch.storage.segments import Rotation

_HOMES = {
    "BatchPolicy": "microbatch.window",
    "Batched": "embed.batched",
    "Clip": "steps.elementwise",
    "ConfigError": "core.errors",
    "DeadLetterOptions": "delivery.dead_letters",
    "Delivery": "durability.options",
    "Feed": "core.feed",
    "FileSink": "connectors.files.sink",
    "FileSource": "connectors.files.source",
    "FullError": "embed.batched",
    "HttpSink": "connectors.http.sink",
    "HttpSource": "connectors.http.source",
    "Impute": "steps.elementwise",
    "InterruptedCallError": "embed.batched",
    "Limits": "core.budget",
    "LinearModel": "models.linear",
    "MemorySink": "connectors.memory.sink",
    "MemorySource": "connectors.memory.source",
    "MinMax": "steps.elementwise",
    "NoneSink": "connectors.memory.none",
    "Pipeline": "pipeline.pipeline",
    "PythonModel": "models.python",
    "PythonStep": "steps.python",
    "QueueLimits": "microbatch.inbox",
    "RecordSchema": "core.schema",
    "RetryableError": "core.errors",
    "Rotation": "storage.segments",
    "RunReport": "core.report",
    "Snapshot": "core.report",
    "SourceBatch": "embed.microbatches",
    "Standardize": "steps.elementwise",
    "StdinSource": "connectors.stdio.source",
    "StdoutSink": "connectors.stdio.sink",
    "StreambatchError": "core.errors",
    "TcpSink": "connectors.sockets.tcp_sink",
    "TcpSource": "connectors.sockets.tcp",
    "UdpSource": "connectors.sockets.udp",
    "UnixSource": "connectors.sockets.unix",
    "Workers": "scoring.executors.choice",
    "batched": "embed.batched",
    "load_pipeline": "config.assemble",
    "microbatches": "embed.microbatches",
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
