"""The sink that posts scores to an HTTP server, one request a batch, over one connection that is kept.

At least once: what wasn't answered is posted again under the same id, by which the server can tell. A server that is
away or overloaded, or that doesn't let us in, is an outage, which may pass: the scores are not at fault. A payload that
the server can't take for what it holds is refused. Any other answer takes a change of the config.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

import anyio
import h11
from pydantic import Field

from streambatch.core.errors import OptionError, SinkError, SinkOutage, SinkRefused
from streambatch.core.options import options
from streambatch.core.parts import Sink, Site, Writer
from streambatch.core.units import Duration
from streambatch.net.http_client import LOST, Answer, Client, why_lost

BATCH_ID = "Streambatch-Batch-Id"
REFUSALS = (400, 413, 422)
OUTAGES = (401, 403, 404, 408, 425, 429)
"""Answers that blame the payload, and those below 500 that don't."""
_SET_HERE = ("content-length", "transfer-encoding", BATCH_ID.lower())


@options
class HttpSink(Sink):
    """Post scores as JSON lines. Any answer of 200 to 299 means that the server has them."""

    url: str
    """Where to post: `http://127.0.0.1:8080/scores`, or https. Redirects are not followed."""
    headers: Mapping[str, str] = Field(default_factory=dict)
    """Headers of every request, such as Authorization."""
    ca_file: str | None = None
    """File with the certificates, in PEM, that an https server's is checked against; default: the system's."""
    timeout: Annotated[Duration, Field(gt=0)] = 30.0
    """How long a request may take, from connecting to the end of the answer, before it is sent again."""
    format: Literal["jsonl"] = "jsonl"
    """One JSON object a line."""
    name: str = "http"
    """Label of the sink in metrics and messages."""

    def __post_init__(self) -> None:
        if not _is_url(self.url):
            raise OptionError("url", repr(self.url), "a URL such as http://127.0.0.1:8080/scores")
        for name, value in self.headers.items():
            if name.lower() in _SET_HERE:
                raise OptionError("headers", repr(name), f"headers other than {', '.join(_SET_HERE)}")
            if not _is_header(name, value):
                raise OptionError("headers", repr(name), "names and values of one line of ASCII")
        if self.ca_file is not None and urlsplit(self.url).scheme != "https":
            raise OptionError("ca_file", repr(self.ca_file), "nothing, unless url begins with https")

    def build(self, site: Site) -> HttpWriter:
        return HttpWriter(self)


class HttpWriter(Writer):
    """Posts over one connection."""

    is_identified = True

    def __init__(self, options: HttpSink) -> None:
        self.name, self._options = options.name, options
        headers = [("Content-Type", "application/x-ndjson"), *options.headers.items()]
        self._client = Client(urlsplit(options.url), headers, options.ca_file)
        self._own_ids = _Series()

    async def open(self, header: bytes) -> None:
        """Start a series of batch ids. The server is first asked for when there is something to send.

        Raises SinkError when `ca_file` can't be used.
        """
        try:
            self._client.start()
        except OSError as error:
            raise SinkError(self.name, f"ca_file {self._options.ca_file}: {why_lost(error)}") from error
        self._own_ids.start()

    async def write(self, payload: bytes) -> None:
        """Post whole records under an id that no other request has; see `write_batch`."""
        await self.write_batch(payload, self._own_ids.next())

    async def write_batch(self, payload: bytes, batch_id: str) -> None:
        """Post the records of one batch. batch_id: ASCII; goes along as the header `Streambatch-Batch-Id`.

        Raises SinkOutage when it may be posted again later, SinkRefused when the server doesn't take such records, and
        SinkError for answers that no waiting cures. Cancelled, it may have been posted or not.
        """
        timeout = self._options.timeout
        try:
            with anyio.fail_after(timeout):
                answer = await self._client.post(payload, (BATCH_ID, batch_id))
        except TimeoutError as error:
            raise SinkOutage(self.name, f"{self._client.where} took more than {timeout:g} s") from error
        except LOST as error:
            raise SinkOutage(self.name, f"can't post to {self._client.where}: {why_lost(error)}") from error
        self._check(answer)

    async def sync(self) -> int:
        """Return the bytes posted since `open`: the server has them all."""
        return self._client.length

    async def close(self) -> None:
        """Let go of the connection."""
        await self._client.close()

    def _check(self, answer: Answer) -> None:
        if answer.is_success:
            return
        status, text = answer.status, answer.text
        problem = f"{self._client.where} answered {status}" + (f": {text}" if text else "")
        if status in REFUSALS:
            raise SinkRefused(self.name, problem, status=status, reason=text)
        if status in OUTAGES or status >= 500:
            raise SinkOutage(self.name, problem, answer.retry_after)
        # A redirect that is followed would send the scores, and the headers with their secrets, to an address that the
        # config doesn't name.
        if answer.location:
            problem += f"; redirects are not followed: set url to {answer.location} if that is right"
        raise SinkError(self.name, problem)


class _Series:
    """Ids for requests that have none: a random prefix and a number."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._series, self._count = secrets.token_hex(8), 0

    def next(self) -> str:
        self._count += 1
        # The random prefix keeps runs apart: a server takes an id that it has seen for a batch that comes twice.
        return f"{self._series}-{self._count}"


def _is_url(url: str) -> bool:
    try:
        parts: SplitResult = urlsplit(url)
        host = parts.hostname or ""
        host.encode("idna")
        # h11 builds every request, so it has the last word: what it would refuse at the first batch is refused here.
        h11.Request(method="POST", target=url.encode("ascii"), headers=[("Host", "x")])
        return parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except (ValueError, h11.LocalProtocolError):
        return False


def _is_header(name: str, value: str) -> bool:
    try:
        h11.Request(method="POST", target="/", headers=[("Host", "x"), (name, value)])
    except (ValueError, h11.LocalProtocolError):
        return False
    return True
