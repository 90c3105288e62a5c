"""Options and reader shared by all sources that accept connections."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Annotated

from pydantic import Field

from streambatch.codecs.formats import StreamFormat
from streambatch.connectors.sockets.serving import Connections, Listener
from streambatch.core.errors import OptionError
from streambatch.core.intake import Intake
from streambatch.core.leases import leases_of
from streambatch.core.options import options
from streambatch.core.parts import Source, WhenFull
from streambatch.core.spooling import check_spool
from streambatch.net.listening import IdleTimeout, ListeningReader, MaxConnections, MaxRecordBytes, Spool


@options
class ConnectionSource(Source, ABC):
    """Options of a source that accepts connections. Subclasses add the address that it listens on."""

    _: KW_ONLY
    name: str = "connections"
    # Descriptions are spelt out since those below an attribute are lost on the way to a subclass.
    max_connections: MaxConnections = 1024
    idle_timeout: IdleTimeout = 60.0
    format: Annotated[StreamFormat, Field(description="How the bytes of a connection become records.")] = "jsonl"
    max_record_bytes: MaxRecordBytes = 1 << 20
    when_full: Annotated[
        WhenFull, Field(description="While the queue is full, stop reading, or drop what was read.")
    ] = "block"
    reply: Annotated[
        bool, Field(description="Write a line back for every record, in the records' order: its score, or its error.")
    ] = False
    spool: Spool = None

    def __post_init__(self) -> None:
        check_spool(self.spool, max_record_bytes=self.max_record_bytes, when_full=self.when_full, reply=self.reply)
        if self.reply and self.when_full == "drop_newest":
            raise OptionError("when_full", "drop_newest", "block, with reply = true: each record has its answer")


class ConnectionReader(ListeningReader, ABC):
    """Reads from all clients that connect."""

    def __init__(self, options: ConnectionSource) -> None:
        super().__init__(options.name)
        self._options = options

    async def run(self, intake: Intake) -> None:
        """Serve clients until cancelled; what was read by then is put. Raises SourceError when it can't listen."""
        options, leases = self._options, leases_of(intake.memory)
        # Before it listens: a source whose connections the budget can't carry must not let a client in.
        with leases.shared_by(self.name, options.max_connections, options.max_record_bytes):
            connections = Connections(options, intake, leases)
            listeners, address = await self._open()
            self._listens_on(address)
            try:
                await connections.serve(listeners)
            finally:
                self._listens_no_more()

    @abstractmethod
    async def _open(self) -> tuple[Sequence[Listener], str]:
        """Return listeners and the address to tell people. Raises SourceError."""
