"""Records from clients of a Unix socket: as `tcp`, but for its address, a file that must be left as it was found.

A socket that another process listens on is never taken over, and only the file this source made is removed.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY
from pathlib import Path

from streambatch.connectors.sockets.connections import ConnectionReader, ConnectionSource
from streambatch.connectors.sockets.serving import Listener
from streambatch.core.errors import SourceError
from streambatch.core.options import options
from streambatch.core.parts import Claim, Site
from streambatch.net.addresses import BACKLOG

PATH_BYTES_MAX = 107
"""What the system's socket address has room for: 108 bytes, one of them the zero at the end."""


@options
class UnixSource(ConnectionSource):
    """Listens on a Unix socket and reads what every client sends until the client closes."""

    path: Path
    """Where to make the socket: `in.sock`."""
    _: KW_ONLY
    name: str = "unix"

    def build(self, site: Site) -> UnixReader:
        return UnixReader(self)

    def claims(self) -> Iterable[Claim]:
        return [Claim("socket", "path", str(self.path))]


class UnixReader(ConnectionReader):
    """Reads from the clients that connect to a socket's path."""

    def __init__(self, options: UnixSource) -> None:
        super().__init__(options)
        self._path = options.path

    async def _open(self) -> tuple[list[Listener], str]:
        length = len(os.fsencode(self._path))
        if length > PATH_BYTES_MAX:
            raise self._error(f"a socket's path may have {PATH_BYTES_MAX} bytes, this one has {length}")
        try:
            sock = self._bind()
        except OSError as error:
            raise self._error(error.strerror or str(error)) from error
        return [_owned(sock, self._path, self._path.lstat())], str(self._path)

    def _bind(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            try:
                sock.bind(str(self._path))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                # The system never removes a socket's file: that of a process that died is still there.
                self._remove_stale()
                sock.bind(str(self._path))
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
        return sock

    def _remove_stale(self) -> None:
        """Remove the socket of a process that is gone. Raises SourceError for anything else at the path."""
        if not stat.S_ISSOCK(self._path.lstat().st_mode):
            raise self._error("there is a file that is not a socket; remove it or choose another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            # The system answers such a connect at once: refused where no process listens, EAGAIN where its queue is
            # full.
            probe.setblocking(False)
            refused = probe.connect_ex(str(self._path))
        if refused in (0, errno.EAGAIN):
            raise self._error("another process listens there; stop it or choose another path")
        if refused not in (errno.ECONNREFUSED, errno.ENOENT):
            raise self._error(os.strerror(refused))
        self._path.unlink(missing_ok=True)

    def _error(self, problem: str) -> SourceError:
        return SourceError(self.name, f"can't listen on {self._path}: {problem}")


@contextmanager
def _owned(sock: socket.socket, path: Path, made: os.stat_result) -> Iterator[socket.socket]:
    """Close the socket at the end and remove the file that was made for it, unless someone has put another there."""
    with sock:
        try:
            yield sock
        finally:
            # While the socket is open its inode can't be given to a successor's file.
            with suppress(OSError):
                if os.path.samestat(made, path.lstat()):
                    path.unlink()
