"""Datagrams, through real sockets: all that the system kept come in, and what it dropped is counted."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from streambatch.connectors.sockets.udp import UdpSource
from streambatch.core.errors import ConfigError, SourceError
from streambatch.core.parts import Site
from streambatch.net.addresses import parse_address
from tests.connectors.intakes import CountingObserver, KeepingIntake, until
from tests.programs import program

pytestmark = pytest.mark.anyio


class DropObserver(CountingObserver):
    dropped = 0

    def datagrams_dropped(self, source: str, count: int) -> None:
        self.dropped += count


@asynccontextmanager
async def serving(intake: KeepingIntake, listen: str = "127.0.0.1:0", **options: Any) -> AsyncIterator[tuple[str, int]]:
    """Run a source beside the test and stop it at the end. Yields its address."""
    source = UdpSource(listen, **options).build(Site())
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(source.run, intake)
            yield parse_address(await source.listening())
            tasks.cancel_scope.cancel()
    assert intake.budget.used == 0
    assert source.address is None


def send(address: tuple[str, int], *datagrams: bytes) -> None:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        for datagram in datagrams:
            client.sendto(datagram, address)


async def test_a_datagram_is_one_or_more_lines() -> None:
    intake = KeepingIntake()
    async with serving(intake) as address:
        send(address, b"one", b"two\n", b"three\nfour", b"", b"\n", b"five\r\n", b"\n\nsix\n\n")
        await intake.holds(6)
    assert b"".join(intake.records()).split() == [b"one", b"two", b"three", b"four", b"five", b"six"]
    assert set(intake.by_partition()) == {"run-1"}


async def test_many_datagrams_are_one_chunk() -> None:
    intake = KeepingIntake()
    async with serving(intake) as address:
        send(address, *(b"%d" % number for number in range(1000)))
        await intake.holds(1000)
    assert intake.records() == [b"%d\n" % number for number in range(1000)]
    assert len(intake.chunks) < 100


async def test_positions_go_on_from_chunk_to_chunk() -> None:
    intake = KeepingIntake()
    async with serving(intake) as address:
        for number in range(3):
            send(address, b"%d" % number)
            await intake.holds(number + 1)
    assert [chunk.position for chunk in intake.chunks] == [2, 4, 6]


async def test_the_largest_datagram_and_oversize_records() -> None:
    intake = KeepingIntake()
    async with serving(intake, max_record_bytes=1000) as address:
        send(address, b"x" * 65507, b"a\n" + b"y" * 1001 + b"\nb", b"\xff\x00")
        await intake.holds(5)
    assert [reason for reason, _ in intake.faults()] == ["oversize", "oversize"]
    assert intake.records() == [b"a\n", b"b\n", b"\xff\x00\n"]


async def test_what_the_system_drops_is_counted() -> None:
    intake = KeepingIntake()
    intake.observer = observer = DropObserver()
    intake.stall()
    async with serving(intake, receive_buffer=4096) as address:
        send(address, b"first")
        await intake.is_waited_for()
        send(address, *[b"x" * 1000] * 100)
        intake.go_on()
        await until(lambda: observer.dropped > 0)
        await until(lambda: intake.count + observer.dropped == 101)
    assert intake.count < 101


async def test_a_stop_puts_what_was_read() -> None:
    intake = KeepingIntake()
    intake.stall()
    source = UdpSource("127.0.0.1:0").build(Site())
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(source.run, intake)
            send(parse_address(await source.listening()), b"one\ntwo")
            await intake.is_waited_for()
            tasks.cancel_scope.cancel()
            intake.go_on()
    assert intake.records() == [b"one\n", b"two\n"]
    assert intake.budget.used == 0


async def test_a_name_may_have_several_addresses() -> None:
    intake = KeepingIntake()
    async with serving(intake, "localhost:0") as address:
        send(("127.0.0.1", address[1]), b"one")
        await intake.holds(1)
    assert intake.records() == [b"one\n"]


@pytest.mark.parametrize(
    "command", [["socat", "-u", "-", "UDP:{host}:{port}"], ["nc", "-u", "-q", "0", "{host}", "{port}"]]
)
async def test_socat_and_netcat_can_send(command: Sequence[str]) -> None:
    program(command[0])
    intake = KeepingIntake()
    async with serving(intake) as (host, port):
        words = [word.format(host=host, port=port) for word in command]
        subprocess.run(words, input=b"one\ntwo\n", check=True, timeout=20)
        await intake.holds(2)
    assert intake.records() == [b"one\n", b"two\n"]


async def test_a_busy_address_is_told() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SourceError, match=f"source udp: can't listen on {listen}: Address already in use"):
            await UdpSource(listen).build(Site()).run(KeepingIntake())


async def test_options_are_checked() -> None:
    make: Any = UdpSource
    for wrong in ({"listen": "9000"}, {"listen": "x:1", "receive_buffer": 0}, {"listen": "x:1", "format": "csv"}):
        with pytest.raises(ConfigError):
            make(**wrong)
