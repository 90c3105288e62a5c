import socket

import anyio
import pytest

from streambatch.connectors.sockets.tcp import TcpSource
from streambatch.core.errors import ConfigError, OptionError, SourceError
from streambatch.core.parts import Site
from streambatch.net.addresses import format_address, parse_address
from tests.connectors.intakes import KeepingIntake

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9000", ("127.0.0.1", 9000)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("my-host.example:80", ("my-host.example", 80)),
    ],
)
def test_addresses_are_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address
    assert format_address(*address) == text


@pytest.mark.parametrize(
    "text", ["", "9000", ":9000", "host", "host:", "host:65536", "host:-1", "::1:9000", "[]:1", "a:b"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"host:port, such as 127\.0\.0\.1:9000"):
        parse_address(text)
    with pytest.raises(ConfigError, match=r"listen: found .* allowed: host:port"):
        TcpSource(text)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
async def test_records_come_in_on_every_address_of_the_host(listen: str) -> None:
    if ":" in parse_address(listen)[0] and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    source, intake = TcpSource(listen).build(Site()), KeepingIntake()
    assert source.address is None
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(source.run, intake)
            host, port = parse_address(await source.listening())
            assert port != 0
            for family, *_, address in socket.getaddrinfo(parse_address(listen)[0], port, type=socket.SOCK_STREAM):
                if family == socket.AF_INET or has_ipv6():
                    async with await anyio.connect_tcp(str(address[0]), port) as client:
                        await client.send(b"one\n")
                    await intake.holds(1)
            tasks.cancel_scope.cancel()
    assert host in ("127.0.0.1", "::1")
    assert set(intake.records()) == {b"one\n"}


async def test_a_source_can_run_again_on_the_port_it_had() -> None:
    intake = KeepingIntake()
    listen = "127.0.0.1:0"
    with anyio.fail_after(10):
        for _ in range(3):
            async with anyio.create_task_group() as tasks:
                source = TcpSource(listen).build(Site())
                tasks.start_soon(source.run, intake)
                listen = await source.listening()
                host, port = parse_address(listen)
                async with await anyio.connect_tcp(host, port) as client:
                    await client.send(b"one\n")
                    await intake.holds(1)
                    tasks.cancel_scope.cancel()


async def test_a_busy_address_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = format_address(*other.getsockname())
        with pytest.raises(SourceError, match=f"source rides: can't listen on {listen}: Address already in use"):
            await TcpSource(listen, name="rides").build(Site()).run(KeepingIntake())


async def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(SourceError, match=r"can't listen on 203\.0\.113\.1:9000: Cannot assign requested address"):
        await TcpSource("203.0.113.1:9000").build(Site()).run(KeepingIntake())


async def test_a_host_that_can_not_be_one_is_named() -> None:
    with pytest.raises(SourceError, match=r"can't listen on x{70}\.example:9000: "):
        await TcpSource("x" * 70 + ".example:9000").build(Site()).run(KeepingIntake())


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
