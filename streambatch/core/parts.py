"""The interfaces of sources, steps, models and sinks.

Options and parts are two things. A `Source` or `Sink` is options: frozen, picklable, checked when built. `build(site)`
makes the running part, a `Reader` or a `Writer`, which is used once; so that a pipeline runs twice, and another process
makes the same parts again. Steps and models are built by their options in the same way. A step or model that is a pure
value serves as its own options, since runs may share it.

What a part can do besides is said by its class: each ability below is an attribute or a method that says no, or does
nothing, unless a class overrides it. No code asks a part for its type or for the names it has.
"""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from streambatch.core.checkpoints import CommitMark, OutputMark, PartitionNotes, SavedPartition
from streambatch.core.clock import Clock, SystemClock
from streambatch.core.types import BoolArray, FloatArray

if TYPE_CHECKING:
    from streambatch.core.archive import Archive, OutputLayout
    from streambatch.core.backlog import Backlog
    from streambatch.core.intake import Intake
    from streambatch.core.spooling import SpoolOptions, SpoolStatus

WhenFull = Literal["block", "drop_newest"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a part is built."""

    pipeline: str = "pipeline"
    """The pipeline's name."""
    part: str = ""
    """The part's key in a config: `source.rides`, `preprocess[0]`, `model`, `sink.scores`."""
    folder: Path = Path()
    """What relative paths start at: the folder of the config, else the working directory."""
    state_dir: Path | None = None
    """Where the pipeline keeps its state; None for a pipeline without."""
    clock: Clock = field(default_factory=SystemClock)


class Claim(NamedTuple):
    """An address, a path or standard input, which two parts of one pipeline must not both take."""

    kind: Literal["tcp", "udp", "socket", "stdin", "input", "output"]
    """An address, by its protocol; a path to listen on; standard input; a path or glob that is read; a file written."""
    option: str
    """The option that says so."""
    value: str
    """The address or path; empty for standard input."""


class Source(ABC):
    """Options of where records come from. `name` is its label and the key of its state."""

    name: str
    format: str
    """How its bytes become records: a format of `streambatch.codecs.formats`."""
    when_full: WhenFull = "block"
    """What happens to what was read while the queue is full."""
    reply: bool = False
    """Whether each record's score, or error, goes back to where the record came from."""
    spool: SpoolOptions | None = None
    """The spool that is to stand between it and the pipeline."""
    dedupe_window: float | None = None
    """Seconds for which a spool remembers the key of a request; None for a day."""
    max_record_bytes: int | None = None
    """A longer record is not scored; None for one without such a limit."""

    @property
    def is_finite(self) -> bool:
        """Whether it ends by itself."""
        return False

    def named(self, name: str) -> Source:
        """Return the same options under another name."""
        renamed: Source = dataclasses.replace(cast("Any", self), name=name)
        return renamed

    @abstractmethod
    def build(self, site: Site) -> Reader:
        """Return a new reader, which has not opened anything yet."""

    def claims(self) -> Iterable[Claim]:
        """Return what no other part of the pipeline may take."""
        return ()

    def where(self) -> str:
        """Return where its records come from, for people, as it is now. Raises SourceError if nothing is there."""
        return ", ".join(claim.value or "standard input" for claim in self.claims()) or self.name

    def sample(self) -> Source | None:
        """Return options that read what is there now, from its beginning to its end; None if there can't be any."""
        return None

    def archive(self) -> Archive | None:
        """Return what finds its records again after a run; None if they are gone once they are read."""
        return None

    def reading(self) -> Mapping[str, Any]:
        """Return the options that decide how bytes become records: positions mean something else if they change."""
        return {"format": self.format}


class Reader(ABC):
    """A running source. It is used once: `resume`, then `run`."""

    name: str
    is_resumable: bool = False
    """Whether its records can be read again from a position."""
    counts_recovered: bool = False
    """Whether it tells the intake itself which records an earlier run had received."""

    @abstractmethod
    async def run(self, intake: Intake) -> None:
        """Push chunks until the input ends or the task is cancelled; own and close every handle."""

    def resume(self, saved: Mapping[str, SavedPartition]) -> None:
        """Take over, before `run`, how far each partition was acked; those not named are new."""

    def notes(self) -> Mapping[str, PartitionNotes | None]:
        """Return the notes of partitions that are new or changed since the last call.

        None is for a partition that is over: it may be forgotten once all its records are acked.
        """
        return {}

    def acked(self, positions: Mapping[str, int]) -> None:
        """Take note that all records up to these positions, by partition name, are durable."""

    def backlog(self) -> Backlog | None:
        """Return what it has before it, as of the last look, at any time; None if it can't tell."""
        return None

    @property
    def spool(self) -> SpoolStatus | None:
        """The spool that stands between it and the pipeline, as it is now; None without one."""
        return None

    @property
    def address(self) -> str | None:
        """Where it listens, with the port that the system chose for port 0; None while it doesn't."""
        return None

    async def listening(self) -> str | None:
        """Wait until it listens, and return `address`; return None at once if it never does."""
        return None


class StepOptions(ABC):
    """Options of a preprocess step."""

    @abstractmethod
    def build(self, site: Site) -> Step | StatefulStep:
        """Return the step of one run. Raises StepError or OptionError when it can't be made."""


class Step(StepOptions):
    """A preprocess step: (n, ...) to (n, ...), or to that and a mask (n,) of rows to keep. A call changes nothing."""

    name: str
    # A literal here and below, so that a type checker tells the two kinds of step apart by it.
    is_stateful: Literal[False] = False
    """Whether it has memory: see `StatefulStep`."""
    keeps_input: bool = False
    """Whether it never writes to the array it is given; if it may, it is given a copy."""
    keeps_shape: bool = False
    """Whether its rows have the shape and dtype of those it is given."""

    def build(self, site: Site) -> Step:
        """Return itself."""
        return self

    def bind(self, shape: tuple[int, ...], dtype: Any) -> Step:
        """Return the step for records of one shape and dtype. Raises ShapeError or StepError if it doesn't fit."""
        return self

    @abstractmethod
    def __call__(self, x: FloatArray, /) -> FloatArray | tuple[FloatArray, BoolArray]:
        """Return rows, or rows and a mask. x: (n, *shape)."""


class StatefulStep(StepOptions):
    """A preprocess step with memory: (state, x) to (state, y), called in the order of records.

    The step itself holds no state, so that runs may share it.
    """

    name: str
    is_stateful: Literal[True] = True
    is_storable: bool = True
    """Whether it can `dump` and `load` its state, which a pipeline with a state folder needs."""
    keeps_input: bool = False
    keeps_shape: bool = False

    def build(self, site: Site) -> StatefulStep:
        """Return itself."""
        return self

    def bind(self, shape: tuple[int, ...], dtype: Any) -> StatefulStep:
        """Return the step for records of one shape and dtype, which then refuses the state of others."""
        return self

    @abstractmethod
    def initial_state(self) -> Any:
        """Return the state before the first record."""

    @abstractmethod
    def __call__(self, state: Any, x: FloatArray, /) -> tuple[Any, FloatArray]:
        """Return a new state and rows; `state` stays as it is."""

    @abstractmethod
    def dump(self, state: Any, /) -> bytes:
        """Return a state as bytes that any later version can load, on any machine."""

    @abstractmethod
    def load(self, data: bytes, /) -> Any:
        """Return the state that was dumped, bit for bit. Raises an error that says why when it doesn't fit."""


class ModelOptions(ABC):
    """Options of a model."""

    @property
    def location(self) -> str | None:
        """Where it is loaded from, for the manifest: a path or `package.module:name`; None if it can't tell."""
        return None

    @abstractmethod
    def build(self, site: Site) -> Model:
        """Return the model of one run. Raises ModelError or OptionError when it can't be loaded."""


class Model(ModelOptions):
    """A model: it scores the records of a batch."""

    name: str
    format: str | None = None
    """What kind of model it is, for the manifest; None: the `type` by which a config asks for it."""
    digest: str | None = None
    """What tells it from other models: a sha256; None if nothing does."""
    parameters: int | None = None
    """How many numbers it learnt; None if it can't tell."""
    is_async: bool = False
    """Whether `score` is awaited on the event loop; true by itself where `score` is a coroutine function."""
    keeps_input: bool = False
    """Whether it never writes to the array it is given; if it may, it is given a copy."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        # A coroutine function can only be awaited, whether or not its class says so as well.
        if inspect.iscoroutinefunction(cls.__dict__.get("score")):
            cls.is_async = True

    def build(self, site: Site) -> Model:
        """Return itself."""
        return self

    def bind(self, shape: tuple[int, ...]) -> None:
        """Check that records of this shape can be scored. Raises ShapeError."""

    @abstractmethod
    def score(self, x: FloatArray, /) -> Any:
        """Return one score, or k, per record: x (n, *shape) gives (n,) or (n, k), or an awaitable of it."""


class Sink(ABC):
    """Options of where encoded scores go."""

    name: str
    format: str
    """How scores are encoded on their way to it."""

    @abstractmethod
    def build(self, site: Site) -> Writer:
        """Return a new writer, which has not opened anything yet."""

    def claims(self) -> Iterable[Claim]:
        """Return what no other part of the pipeline may take."""
        return ()

    def describe(self) -> Mapping[str, Any]:
        """Return what a run's manifest says of it; its path is the first file that it claims."""
        path = next((claim.value for claim in self.claims() if claim.kind == "output"), None)
        return {"name": self.name, "path": path, "format": self.format}

    def conflict(self) -> Path | None:
        """Return a file that is there already and would keep a run without state from starting; None without one."""
        return None

    def files(self) -> OutputLayout | None:
        """Return the files from which its scores can be read again; None if it keeps none."""
        return None


class Writer(ABC):
    """An output that takes encoded scores in order. It is used once: `restore`, `open`, writes, `close`."""

    name: str
    is_rewindable: bool = False
    """Whether it can be taken back to a mark: `restore` and `mark`."""
    is_identified: bool = False
    """Whether the other side is told which batch it is given, so that it knows one that comes twice: `write_batch`."""
    is_segmented: bool = False
    """Whether it closes what it writes piece by piece, so that scores may be durable only then: `durable_writes`,
    `close_due`, `finish`."""

    @abstractmethod
    async def open(self, header: bytes) -> None:
        """Acquire the output; `header` starts a fresh one. Raises SinkError or HeldError."""

    @abstractmethod
    async def write(self, payload: bytes) -> None:
        """Write whole records; when it returns they are handed to the system."""

    async def write_batch(self, payload: bytes, batch_id: str) -> None:
        """Write the scores of one batch, as `write` does.

        batch_id: ASCII, the same whenever the batch is sent again.
        """
        await self.write(payload)

    @abstractmethod
    async def sync(self) -> int:
        """Make durable what was written, as far as that can be without closing a segment; a write may go on meanwhile.

        Returns the output's length in bytes.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give the output back; does nothing when it is not open."""

    def restore(self, mark: OutputMark | None, commit: CommitMark) -> None:
        """Take over, before `open`, what the last checkpoint says of this output: None if there is none.

        `open` takes the output back to `mark`. It awaits `commit` before it first changes anything, and again before a
        closed segment gets its name.
        """

    def mark(self) -> OutputMark:
        """Return how far the output goes with all that was written until now."""
        return {}

    @property
    def durable_writes(self) -> int:
        """How many of the writes since `open` were durable when `sync` or `finish` last returned."""
        return 0

    async def close_due(self) -> None:
        """Close what is due; called by the task that writes, also when nothing was written for long."""

    async def finish(self) -> None:
        """Complete what is open, so that all that was written is durable: the input ended, or too much waits for it."""
